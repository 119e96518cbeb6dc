package introspect_test

import (
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/introspect"
)

// tokenTable is the part of a symbol table by which it is found, with its index.
func tokenTable() []byte {
	var table, index []byte
	for i := range 256 {
		index = binary.LittleEndian.AppendUint16(index, uint16(len(table)))
		if i >= ' ' && i <= '~' {
			table = append(table, byte(i))
		}
		table = append(table, 0)
	}
	for len(table)%8 != 0 {
		table = append(table, 0)
	}
	return append(table, index...)
}

// Token tables without end, between what could be markers and names but is not, keep the host busy only for a while.
func TestHostileSymbols(t *testing.T) {
	table := tokenTable()
	for name, word := range map[string]func(i int) uint32{
		"zeros":     func(int) uint32 { return 0 },
		"ones":      func(int) uint32 { return 1 },
		"ascending": func(i int) uint32 { return uint32(i % 4096) },
	} {
		mem := make([]byte, 64<<20)
		for i := 0; i < len(mem); i += 4 {
			binary.LittleEndian.PutUint32(mem[i:], word(i/4))
		}
		for i := 1 << 20; i < len(mem); i += 1 << 19 {
			copy(mem[i:], table)
		}
		start := time.Now()
		_, err := introspect.ReadMemory(t.Context(), memoryOf(t, guestmem.Region{Base: 16 << 20, Mem: mem}), "x86_64")
		if took := time.Since(start); !errors.Is(err, introspect.ErrSymbols) || took > hangLimit {
			t.Errorf("%s: %v after %v", name, err, took)
		}
	}
}
