package main

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf/btf"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// The object and the code that loads it are what "go generate" makes of the source.
func TestObjectIsBuilt(t *testing.T) {
	testenv.Tool(t, "clang-19")
	testenv.Tool(t, "llvm-strip-19")
	source, err := os.ReadFile("main.go")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^//go:generate go tool bpf2go (.*)$`).FindSubmatch(source)
	if line == nil {
		t.Fatal("main.go has no such line")
	}
	dir := t.TempDir()
	args := append([]string{"tool", "bpf2go", "-output-dir", dir}, strings.Fields(string(line[1]))...)
	generate := exec.Command("go", args...)
	generate.Env = append(os.Environ(), "GOPACKAGE=main")
	if out, err := generate.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"fifo_bpfel.o", "fifo_bpfel.go"} {
		want, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s has %d bytes, not the %d that are made now; run go generate: %v", name, len(got), len(want), err)
		}
	}
}

// What the flags say comes to be in the object.
func TestConfigure(t *testing.T) {
	spec, err := loadFifo()
	if err != nil {
		t.Fatal(err)
	}
	o := options{forget: "pingpong", reject: true, watchdog: 2 * time.Second}
	if err := o.configure(spec); err != nil {
		t.Fatal(err)
	}
	var forget [maxComm + 1]byte
	var reject bool
	if err := spec.Variables["forget"].Get(&forget); err != nil || string(bytes.TrimRight(forget[:], "\x00")) != o.forget {
		t.Errorf("%q, %v", forget, err)
	}
	if err := spec.Variables["reject"].Get(&reject); err != nil || !reject {
		t.Errorf("%t, %v", reject, err)
	}
	ops := spec.Maps["fifo"]
	layout, _ := btf.As[*btf.Struct](ops.Value)
	for _, m := range layout.Members {
		if m.Name != "timeout_ms" {
			continue
		}
		if ms := binary.LittleEndian.Uint32(ops.Contents[0].Value.([]byte)[m.Offset.Bytes():]); ms != 2000 {
			t.Errorf("%d ms", ms)
		}
		return
	}
	t.Error("no timeout_ms")
}

func TestConfigureRefuses(t *testing.T) {
	for name, o := range map[string]options{
		"a long name":      {forget: "sixteen letters!", watchdog: time.Second},
		"no watchdog":      {},
		"a long watchdog":  {watchdog: 31 * time.Second},
		"a short watchdog": {watchdog: time.Microsecond},
	} {
		spec, err := loadFifo()
		if err != nil {
			t.Fatal(err)
		}
		if o.configure(spec) == nil {
			t.Errorf("%s: no error", name)
		}
	}
}
