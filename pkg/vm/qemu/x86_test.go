package qemu

import (
	"bytes"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// The mailbox ends below the board's boot data, and its numbers are where the firmware reads them.
func TestMailbox(t *testing.T) {
	box := x86Platform{}.mailbox(vm.Entry{PC: 0x1122334455667788, Arg: 0x99})
	const gdt = 0x6000
	if end := int(box.state) + len(box.content); end > gdt {
		t.Errorf("it ends at 0x%x", end)
	}
	if !bytes.Equal(box.content[:8], []byte{0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11}) || box.content[8] != 0x99 {
		t.Errorf("% x", box.content[:16])
	}
	if count := box.content[0x54-8]; count != 2 {
		t.Errorf("%d MSRs", count)
	}
}
