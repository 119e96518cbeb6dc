// Command schema writes the JSON Schemas beside it, of config files and of reports, and the table of settings in
// docs/config.md, from what they are made of.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/invopop/jsonschema"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
)

// schemas are the files and what is in them.
var schemas = map[string]any{
	"run.json":          config.Schema(config.Run),
	"demo.json":         config.Schema(config.Demo),
	"suite.json":        suite.Schema(),
	"report.json":       reflected(&report.Report{}),
	"suite-report.json": reflected(&suite.Report{}),
}

// reflected is the schema of what is encoded by encoding/json. Fields are added to it without notice, as to a report.
func reflected(v any) *jsonschema.Schema {
	r := jsonschema.Reflector{
		AllowAdditionalProperties: true,
		Anonymous:                 true,
		ExpandedStruct:            true,
		Mapper: func(t reflect.Type) *jsonschema.Schema {
			switch t {
			case reflect.TypeFor[run.Outcome]():
				return words(run.Outcomes())
			case reflect.TypeFor[suite.Status]():
				return words(suite.Statuses())
			}
			return nil
		},
	}
	return r.Reflect(v)
}

// words is the schema of a string that is one of these.
func words[T ~string](all []T) *jsonschema.Schema {
	s := &jsonschema.Schema{Type: "string"}
	for _, w := range all {
		s.Enum = append(s.Enum, string(w))
	}
	return s
}

// encode is a schema as its file has it.
func encode(schema any) ([]byte, error) {
	var b bytes.Buffer
	err := report.EncodeJSON(&b, schema)
	return b.Bytes(), err
}

// The table is between these lines of its document.
const (
	tableBegin = "<!-- the table is written by: go run ./configs/schema -->\n\n"
	tableEnd   = "\n<!-- end of the table -->\n"
)

// withTable returns a document with its table anew.
func withTable(document string) (string, error) {
	before, rest, ok := strings.Cut(document, tableBegin)
	_, after, end := strings.Cut(rest, tableEnd)
	if !ok || !end {
		return "", errors.New("there is no place for the table")
	}
	return before + tableBegin + config.Table() + tableEnd + after, nil
}

func write() error {
	for name, schema := range schemas {
		text, err := encode(schema)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join("configs", "schema", name), text, 0o644); err != nil {
			return err
		}
	}
	path := filepath.Join("docs", "config.md")
	document, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	text, err := withTable(string(document))
	if err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o644)
}

func main() {
	if err := write(); err != nil {
		fmt.Fprintln(os.Stderr, "schema:", err)
		os.Exit(1)
	}
}
