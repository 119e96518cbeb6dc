package fdt_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/u-root/u-root/pkg/dt"
	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// What Decode reads in a tree, fdtdump reads too: in trees that fuzzing found, and in some with a few bytes changed.
func TestFdtdumpReadsTheSame(t *testing.T) {
	fdtdump := testenv.Tool(t, "fdtdump")
	whole := seeds(t)
	trees := append(corpus(t, "FuzzDecode"), whole...)
	random := rand.New(rand.NewPCG(1, 2))
	for range 1000 {
		trees = append(trees, changed(whole[random.IntN(len(whole))], random))
	}
	read := 0
	for _, tree := range trees {
		got, err := fdt.Decode(tree)
		if err != nil || be.Uint32(tree[20:]) > 17 {
			continue // fdtdump reads no later version, whatever that says of itself
		}
		read++
		if diff := cmp.Diff(memoryOf(dump(t, fdtdump, tree)), got); diff != "" {
			t.Fatalf("%s\nof %q", diff, tree)
		}
	}
	t.Logf("%d of %d trees can be read", read, len(trees))
	if read < len(trees)/10 || read > len(trees)*9/10 {
		t.Errorf("%d of %d trees can be read", read, len(trees))
	}
}

// changed is a tree with some of its 32-bit words changed.
func changed(tree []byte, random *rand.Rand) []byte {
	tree = bytes.Clone(tree)
	for range 1 + random.IntN(3) {
		word := tree[random.IntN(len(tree)/4)*4:]
		switch random.IntN(3) {
		case 0:
			be.PutUint32(word, random.Uint32N(10)) // a token, a count of cells, a short length
		case 1:
			word[random.IntN(4)] ^= 1 << random.IntN(8)
		default:
			be.PutUint32(word, be.Uint32(tree[random.IntN(len(tree)/4)*4:]))
		}
	}
	return tree
}

// corpus is what a fuzz target of one []byte has in testdata.
func corpus(t *testing.T, target string) (inputs [][]byte) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join("testdata", "fuzz", target, "*"))
	if err != nil || len(files) == 0 {
		t.Fatal("no corpus: ", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, quoted, _ := strings.Cut(strings.TrimSuffix(string(text), ")\n"), "[]byte(")
		input, err := strconv.Unquote(quoted)
		if err != nil {
			t.Fatal(file, ": ", err)
		}
		inputs = append(inputs, []byte(input))
	}
	return inputs
}

// Any machine's tree is the same to fdtdump.
func TestFdtdumpReadsWhatIsEncoded(t *testing.T) {
	fdtdump := testenv.Tool(t, "fdtdump")
	rapid.Check(t, func(rt *rapid.T) {
		pages := func(name string, from, to uint64) uint64 {
			return rapid.Uint64Range(from/fdt.PageSize, to/fdt.PageSize).Draw(rt, name) * fdt.PageSize
		}
		m := fdt.Machine{
			RAM:         []fdt.Range{{Start: pages("RAM", 1<<30, 1<<40), Size: pages("RAM's size", fdt.PageSize, 1<<40)}},
			Reservation: rapid.SampledFrom([]fdt.Reservation{fdt.NoMap, fdt.Cacheable}).Draw(rt, "reservation"),
			Topology:    topology.OfCores(rapid.IntRange(1, 123).Draw(rt, "processors")),
			Devices:     qemuDevices,
			Bootargs:    rapid.StringMatching(`[ -~]{0,100}`).Draw(rt, "command line"),
			RNGSeed:     rapid.SliceOfN(rapid.Byte(), 0, 64).Draw(rt, "seed"),
			KASLRSeed:   rapid.Uint64().Draw(rt, "KASLR's seed"),
		}
		m.Ring = fdt.Range{Start: m.RAM[0].End() + pages("gap", 0, 1<<32), Size: pages("ring", fdt.PageSize, 1<<30)}
		tree := encode(t, m)
		checkEncoded(t, m, tree)
		dumped := dump(t, fdtdump, tree)
		got, err := fdt.Decode(tree)
		if diff := cmp.Diff(memoryOf(dumped), got); err != nil || diff != "" {
			rt.Fatal(err, diff)
		}
		if chosen, _ := dumped.NodeByName("chosen"); value(chosen, "bootargs") != m.Bootargs+"\x00" {
			rt.Fatalf("command line %q is %q", m.Bootargs, value(chosen, "bootargs"))
		}
	})
}

// dump is a tree as fdtdump shows it.
func dump(t *testing.T, fdtdump string, tree []byte) *dt.FDT {
	t.Helper()
	file := filepath.Join(t.TempDir(), "tree.dtb")
	if err := os.WriteFile(file, tree, 0o600); err != nil {
		t.Fatal(err)
	}
	text, complaints, err := try(nil, fdtdump, file)
	if err != nil {
		t.Fatalf("fdtdump of %q: %v\n%s", tree, err, complaints)
	}
	dumped, open := &dt.FDT{}, []*dt.Node{{}}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		current := open[len(open)-1]
		if name, ok := strings.CutSuffix(line, " {"); ok {
			n := dt.NewNode(name)
			current.Children = append(current.Children, n)
			open = append(open, n)
			continue
		}
		switch name, value, _ := strings.Cut(strings.TrimSuffix(line, ";"), " "); {
		case line == "" || name == "//" || name == "/dts-v1/":
		case line == "};":
			open = open[:len(open)-1]
		case name == "/memreserve/":
			var r dt.ReserveEntry
			if _, err := fmt.Sscanf(value, "%v %v", &r.Address, &r.Size); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			dumped.ReserveEntries = append(dumped.ReserveEntries, r)
		default:
			current.Update(dt.Property{Name: name, Value: dumpedValue(t, strings.TrimPrefix(value, "= "))})
		}
	}
	dumped.RootNode = open[0].Children[0]
	return dumped
}

// dumpedValue is a property's value as fdtdump shows it: words, bytes or strings, which it does not escape.
func dumpedValue(t *testing.T, s string) (v []byte) {
	t.Helper()
	if strings.HasPrefix(s, `"`) {
		return []byte(strings.ReplaceAll(s[1:len(s)-1], `", "`, "\x00") + "\x00")
	}
	for _, field := range strings.Fields(strings.Trim(s, "<[]>")) {
		n, err := strconv.ParseUint(strings.TrimPrefix(field, "0x"), 16, 32)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if s[0] == '[' {
			v = append(v, byte(n))
		} else {
			v = be.AppendUint32(v, uint32(n))
		}
	}
	return v
}
