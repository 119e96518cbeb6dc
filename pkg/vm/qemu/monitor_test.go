package qemu

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// What QEMU 7.2 says of a processor in 64-bit mode that is halted, of one that waits for INIT, and of arm64's.
const (
	longMode = "\r\nCPU#0\r\nRAX=ffffffff82a1c4b0 RBX=0000000000000001 RCX=0000000000000002 RDX=0000000000000003\r\n" +
		"RSI=0000000000000004 RDI=0000000000000005 RBP=0000000000000006 RSP=ffffc9000009bee8\r\n" +
		"R8 =0000000000000008 R9 =0000000000000009 R10=000000000000000a R11=000000000000000b\r\n" +
		"R12=000000000000000c R13=000000000000000d R14=000000000000000e R15=000000000000000f\r\n" +
		"RIP=ffffffff81c4c0ab RFL=00000246 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\n" +
		"ES =0000 0000000000000000 ffffffff 00c00000\r\nCS =0010 0000000000000000 ffffffff 00af9b00 DPL=0 CS64 [-RA]\r\n" +
		"SS =0018 0000000000000000 ffffffff 00cf9300 DPL=0 DS   [-WA]\r\nFS =0000 00007f0000000000 ffffffff 00c00000\r\n" +
		"GS =0000 ffff88803ec00000 ffffffff 00c00000\r\nGDT=     fffffe0000001000 0000007f\r\n" +
		"CR0=80050033 CR2=00007f00000000ff CR3=0000000002a10000 CR4=00750ef0\r\n" +
		"EFER=0000000000000d01\r\nFPR0=0000000000000000 0000 FPR1=0000000000000000 0000\r\n"
	realMode = "\r\nCPU#1\r\nEAX=00000000 EBX=00000000 ECX=00000000 EDX=00060fb1\r\n" +
		"ESI=00000000 EDI=00000000 EBP=00000000 ESP=00000000\r\n" +
		"EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\nCS =f000 ffff0000 0000ffff 00009b00\r\n" +
		"SS =0000 00000000 0000ffff 00009300\r\nFS =0000 00000000 0000ffff 00009300\r\n" +
		"GS =0000 00000000 0000ffff 00009300\r\nCR0=60000010 CR2=00000000 CR3=00000000 CR4=00000000\r\n" +
		"EFER=0000000000000000\r\n"
)

func TestX86Registers(t *testing.T) {
	r, err := x86Platform{}.registers(fieldsOf(longMode))
	if err != nil || r.PC != 0xffffffff81c4c0ab || r.SP != 0xffffc9000009bee8 || r.State != vm.Halted ||
		len(r.Values) != 27 {
		t.Errorf("%+v, %v", r, err)
	}
	want := map[string]uint64{"rax": 0xffffffff82a1c4b0, "r8": 8, "r15": 15, "rflags": 0x246, "cs": 0x10, "ss": 0x18,
		"fs_base": 0x7f0000000000, "gs_base": 0xffff88803ec00000, "cr2": 0x7f00000000ff, "cr4": 0x750ef0, "efer": 0xd01}
	for _, v := range r.Values {
		if w, ok := want[v.Name]; ok && w != v.Value {
			t.Errorf("%s is 0x%x, want 0x%x", v.Name, v.Value, w)
		}
		delete(want, v.Name)
	}
	if len(want) > 0 {
		t.Errorf("there is no %v", want)
	}
	r, err = x86Platform{}.registers(fieldsOf(realMode))
	if err != nil || r.PC != 0xfff0 || len(r.Values) != 19 {
		t.Errorf("%+v, %v", r, err)
	}
	for _, cut := range []string{"RSP", "RFL", "CS ", "GS ", "CR4", "EFER"} {
		r, err := x86Platform{}.registers(fieldsOf(strings.ReplaceAll(longMode, cut, "X")))
		if err == nil || len(r.Values) > 0 || !strings.Contains(err.Error(), "no "+strings.TrimSpace(cut)) {
			t.Errorf("without %s: %+v, %v", cut, r, err)
		}
	}
}

// Whatever a QEMU says, no more than is needed is kept of it, and who asks gets a text for each processor or none.
func FuzzMonitor(f *testing.F) {
	const end = "unknown command: 'end-1'\r\n"
	f.Add("(qemu) i\x1b[K\x1b[Dinfo registers -a\r\n" + longMode + realMode + "(qemu) " + end)
	f.Add("CPU#-1\nCPU#2\nRAX=1\nCPU#99999999999999999999\n" + end + end)
	f.Add(strings.Repeat("CPU#1\nRAX=0000000000000001\n", 10000) + end)
	f.Add("CPU#0\n" + strings.Repeat("x", 1<<20) + "\n" + strings.Repeat("RBX=1\n", 10000))
	f.Fuzz(func(t *testing.T, said string) {
		q, theirs, err := newMonitor()
		if err != nil {
			t.Fatal(err)
		}
		defer closeAll([]*os.File{q.conn, theirs})
		const cpus = 2
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		gone, answered := make(chan struct{}), make(chan []string)
		go func() {
			texts, _ := q.ask(ctx, cpus, gone)
			answered <- texts
		}()
		buf := make([]byte, 4096)
		for asked := ""; !strings.Contains(asked, "end-1\n"); {
			n, err := theirs.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			asked += string(buf[:n])
		}
		_, _ = q.Write([]byte(said))
		close(gone)
		texts := <-answered
		if texts != nil && len(texts) != cpus {
			t.Errorf("%d texts", len(texts))
		}
		for _, text := range texts {
			if len(text) > 2*maxProcessor {
				t.Errorf("%d bytes of a processor", len(text))
			}
			for _, platform := range []platform{x86Platform{}, arm64Platform{}} {
				_, _ = platform.registers(fieldsOf(text))
			}
		}
		if cap(q.line) > 4*maxMonitorLine {
			t.Errorf("%d bytes are kept", cap(q.line))
		}
	})
}
