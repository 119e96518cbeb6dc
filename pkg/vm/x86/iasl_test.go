package x86_test

import (
	"bytes"
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// ACPI's own compiler reads every table without a warning, and what it read makes the same table again.
func TestACPITablesAreGoodForIASL(t *testing.T) {
	iasl := testenv.Tool(t, "iasl")
	for _, processors := range []topology.Topology{
		topology.OfCores(1), topology.OfCores(3), topology.OfCores(254), {Cores: 3, Threads: 2, Nodes: 1},
		{Sockets: 2, Dies: 2, Cores: 6, Threads: 2, LLCCores: 3, Nodes: 8}, {Sockets: 64, Nodes: 64},
	} {
		for signature, table := range acpiTables(t, processors) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "table.dat"), table, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, args := range [][]string{{"-d", "table.dat"}, {"-we", "-oa", "table.dsl"}} { // warnings are errors; as it is
				cmd := exec.Command(iasl, args...)
				cmd.Dir = dir
				out, err := cmd.CombinedOutput()
				said := strings.ToLower(string(out))
				said = strings.ReplaceAll(said, "0 errors, 0 warnings, 0 remarks", "")
				for _, word := range []string{"warning", "error", "remark", "invalid", "unknown"} {
					if err != nil || strings.Contains(said, word) {
						t.Fatalf("%s of %s: iasl %s: %v\n%s", signature, processors, args, err, out)
					}
				}
			}
			again, err := os.ReadFile(filepath.Join(dir, "table.aml"))
			const header = 36 // which names the compiler
			if err != nil || len(again) < header || !bytes.Equal(again[header:], table[header:]) {
				t.Errorf("%s of %s: read and compiled again it is\n% x, it was\n% x (%v)",
					signature, processors, again, table, err)
			}
		}
	}
}

// acpiTables are a machine's tables as its kernel finds them, by their signatures.
func acpiTables(t *testing.T, processors topology.Topology) map[string][]byte {
	t.Helper()
	mem := make([]byte, 8<<20)
	ram, err := guestmem.New(guestmem.Region{Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (x86.Board{}).Load(ram, vm.Boot{
		Config:     vm.Config{Kernel: x86.BzImage{File: bytes.NewReader(bzImage(reset))}, Topology: processors},
		CounterKHz: func() (uint32, error) { return 0, nil },
	}); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	tables := map[string][]byte{}
	add := func(at uint64) []byte {
		table := mem[at:][:le.Uint32(mem[at+4:])]
		tables[string(table[:4])] = table
		return table
	}
	root := le.Uint64(mem[0x7000+0x70:]) // in the zero page
	for list := add(le.Uint64(mem[root+24:]))[36:]; len(list) > 0; list = list[8:] {
		if table := add(le.Uint64(list)); string(table[:4]) == "FACP" {
			add(le.Uint64(table[140:]))
		}
	}
	if numa := processors.Nodes > 0; len(tables) != map[bool]int{false: 4, true: 6}[numa] {
		t.Fatalf("%d tables", len(tables))
	}
	return tables
}
