package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// The files are what "go run ./configs/schema" writes.
func TestSchemasAreUpToDate(t *testing.T) {
	for name, schema := range schemas {
		want, err := encode(schema)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is stale (%v): run \"go run ./configs/schema\" in the repository's root", name, err)
		}
	}
	document, err := os.ReadFile(filepath.Join("..", "..", "docs", "config.md"))
	if err != nil {
		t.Fatal(err)
	}
	if want, err := withTable(string(document)); err != nil || want != string(document) {
		t.Errorf("the table in docs/config.md is stale (%v): run \"go run ./configs/schema\"", err)
	}
	files, err := filepath.Glob("*.json")
	if err != nil || len(files) != len(schemas) {
		t.Errorf("%q, %v, want %d files", files, err, len(schemas))
	}
}

func compiled(t *testing.T, name string) *jsonschema.Schema {
	t.Helper()
	s, err := jsonschema.NewCompiler().Compile(name)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// judged says what a schema has against a YAML text.
func judged(t *testing.T, schema *jsonschema.Schema, text string) error {
	t.Helper()
	var v any
	if err := yaml.Unmarshal([]byte(text), &v); err != nil {
		t.Fatal(err)
	}
	return schema.Validate(v)
}

// An editor finds right what the program takes, and wrong what it does not.
func TestSchemasOfConfigs(t *testing.T) {
	for _, c := range []struct {
		schema, text string
		right        bool
	}{
		{"demo.json", "memory: 512M\ncpus: 2\ntimeout: 1m30s\nscenario: flood,count=10", true},
		{"demo.json", "memory: 536870912\ngrace: 0", true},
		{"demo.json", "", true},
		{"demo.json", "memory: 12Q", false},
		{"demo.json", "memmory: 512M", false},
		{"demo.json", "timeout: 60", false},
		{"demo.json", "accel: qemu", false},
		{"demo.json", "kernel: vmlinuz", false},
		{"run.json", "kernel: vmlinuz\ncommand: [uname, -a]\nenv: [A=b]\ntty: true\ndump-on: stall\nstall-polls: 3", true},
		{"run.json", "env: A=b\ndump-on: [stall, timeout]", true},
		{"run.json", "dump-on: noon", false},
		{"run.json", "tty: perhaps", false},
		{"run.json", "stall-rate: -1", false},
		{"run.json", "scenario: ok", false},
		{"suite.json", "name: s\nruns: [{scenario: ok, matrix: {cpus: [1, 2]}, expect: {outcome: crash}}]", true},
		{"suite.json", "name: s\nruns: [{scenario: ok, memory: 12Q}]", false},
		{"suite.json", "name: s\nruns: [{scenario: ok, report: r.json}]", false},
		{"suite.json", "name: s\nruns: [{scenario: ok, expect: {outcome: late}}]", false},
		{"suite.json", "name: s", false},
	} {
		if err := judged(t, compiled(t, c.schema), c.text); (err == nil) != c.right {
			t.Errorf("%s of %q: %v", c.schema, c.text, err)
		}
	}
}

// The configs that are shipped name their schema in the first line, are as it says, and are taken by the program.
func TestShippedConfigs(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("..", "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	commands := map[string]config.Command{"run.json": config.Run, "demo.json": config.Demo}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		first, _, _ := strings.Cut(string(text), "\n")
		name, ok := strings.CutPrefix(first, "# yaml-language-server: $schema=schema/")
		if !ok {
			t.Errorf("%s begins with %q, which names no schema", file, first)
			continue
		}
		if err := judged(t, compiled(t, name), string(text)); err != nil {
			t.Errorf("%s: %v", file, err)
		}
		if command, ok := commands[name]; ok {
			s := config.New(command)
			if err := errors.Join(s.Load([]string{file}, nil), s.Check()); err != nil {
				t.Error(err)
			}
		}
		if name == "suite.json" {
			if _, err := suite.Open(file, nil); err != nil {
				t.Error(err)
			}
		}
	}
}
