package x86_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/x86"
)

// reset is a kernel's code at its entry point: out 0x64, 0xfe; jmp .
var reset = []byte{0xb0, 0xfe, 0xe6, 0x64, 0xeb, 0xfe}

const (
	setupSectors = 3
	preferred    = 2 << 20
	kernelSize   = 0x1000
)

// bzImage is the least that is one: a setup header, and a kernel that is code at its 64-bit entry
// point. Fields by their offsets in the Linux boot protocol.
func bzImage(kernel []byte) []byte {
	b := make([]byte, (setupSectors+1)*512+kernelSize)
	le := binary.LittleEndian
	b[0x1f1] = setupSectors
	le.PutUint32(b[0x1f4:], kernelSize/16)
	le.PutUint16(b[0x1fe:], 0xaa55)
	copy(b[0x200:], "\xeb\x66HdrS")
	le.PutUint16(b[0x206:], 0x020f)
	b[0x211] = 1
	le.PutUint32(b[0x22c:], 0x7fffffff)
	le.PutUint16(b[0x236:], 1)
	le.PutUint32(b[0x238:], 100)
	le.PutUint64(b[0x258:], preferred)
	le.PutUint32(b[0x260:], 1<<20)
	copy(b[(setupSectors+1)*512+0x200:], kernel)
	return b
}

// initrd is bytes as an initial RAM file system.
type initrd string

func (i initrd) Size() uint64 { return uint64(len(i)) }
func (i initrd) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, string(i))
	return int64(n), err
}

// A bzImage is entered at its 64-bit entry point, and finds its header, its command line and its
// initrd by the zero page.
func TestBzImage(t *testing.T) {
	loader, err := x86.Open(bytes.NewReader(bzImage(reset)))
	if err != nil {
		t.Fatal(err)
	}
	testenv.EachBackend(t, func(t *testing.T, b vm.Backend) {
		m, err := vm.New(vm.Config{Kernel: loader, Backend: b, Cmdline: "hello", Initrd: initrd("files"), Memory: 64 << 20})
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		checkZeroPage(t, m.Memory())
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		if err := m.Wait(); !errors.Is(err, vm.ErrReset) {
			t.Error(err)
		}
	})
}

func checkZeroPage(t *testing.T, memory *guestmem.Memory) {
	t.Helper()
	zero := make([]byte, 4096)
	if err := memory.Read(zero, 0x7000); err != nil {
		t.Fatal(err)
	}
	le := binary.LittleEndian
	if string(zero[0x202:0x206]) != "HdrS" || le.Uint64(zero[0x258:]) != preferred || zero[0x210] != 0xff {
		t.Errorf("setup header %x", zero[0x1f1:0x268])
	}
	for name, f := range map[string]struct {
		at, size int
		want     string
	}{"command line": {0x228, 0x238, "hello"}, "initrd": {0x218, 0x21c, "files"}} {
		got := make([]byte, le.Uint32(zero[f.size:]))
		if err := memory.Read(got, guestmem.Addr(le.Uint32(zero[f.at:]))); err != nil ||
			!strings.HasSuffix(string(got), f.want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	if at := le.Uint32(zero[0x218:]); at%4096 != 0 || at < preferred+1<<20 || at >= 48<<20 {
		t.Errorf("initrd at 0x%x", at)
	}
}

func TestBzImageRefuses(t *testing.T) {
	le := binary.LittleEndian
	good := bzImage(reset)
	change := func(fn func(b []byte)) []byte {
		b := bytes.Clone(good)
		fn(b)
		return b
	}
	ram, err := guestmem.New(guestmem.Region{Mem: make([]byte, 8<<20)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (x86.BzImage{File: bytes.NewReader(good)}).Load(ram); err != nil {
		t.Fatal(err)
	}
	for name, image := range map[string][]byte{
		"header cut":       good[:0x250],
		"kernel cut":       good[:len(good)-100],
		"old protocol":     change(func(b []byte) { le.PutUint16(b[0x206:], 0x0209) }),
		"no 64-bit entry":  change(func(b []byte) { le.PutUint16(b[0x236:], 0) }),
		"no kernel":        change(func(b []byte) { le.PutUint32(b[0x1f4:], 0) }),
		"largest kernel":   change(func(b []byte) { le.PutUint32(b[0x1f4:], 0xffffffff) }),
		"wants more":       change(func(b []byte) { le.PutUint32(b[0x260:], 0xffffffff) }),
		"below 1 MiB":      change(func(b []byte) { le.PutUint64(b[0x258:], 0x10000) }),
		"above all":        change(func(b []byte) { le.PutUint64(b[0x258:], ^uint64(0)) }),
		"more setup":       change(func(b []byte) { b[0x1f1] = 255 }),
		"default of setup": change(func(b []byte) { b[0x1f1] = 0 }),
	} {
		if _, err := (x86.BzImage{File: bytes.NewReader(image)}).Load(ram); !errors.Is(err, vm.ErrKernel) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestOpenKernelRefuses(t *testing.T) {
	arm := make([]byte, 0x40)
	copy(arm[0x38:], "ARM\x64")
	for content, says := range map[string]string{"": "neither", "#!/bin/sh\n": "neither",
		string(make([]byte, 4096)): "neither", string(arm): "arm64"} {
		if _, err := x86.Open(strings.NewReader(content)); !errors.Is(err, vm.ErrKernel) ||
			!strings.Contains(err.Error(), says) {
			t.Errorf("%.20q: %v", content, err)
		}
	}
}

// badInitrd announces size bytes and writes fewer, or fails.
type badInitrd struct {
	size uint64
	err  error
}

func (i badInitrd) Size() uint64 { return i.size }
func (i badInitrd) WriteTo(w io.Writer) (int64, error) {
	n, err := io.WriteString(w, "part")
	return int64(n), errors.Join(i.err, err)
}

// Why an initrd can't be written is its own cause: the kernel is not bad for it.
func TestInitrdKeepsItsCause(t *testing.T) {
	ram, err := guestmem.New(guestmem.Region{Mem: make([]byte, 48<<20)})
	if err != nil {
		t.Fatal(err)
	}
	unreadable := errors.New("/some/file can't be read")
	for _, tc := range []struct {
		initrd badInitrd
		want   error
	}{{badInitrd{4, unreadable}, unreadable}, {badInitrd{8, nil},
		io.ErrUnexpectedEOF}, {badInitrd{0, unreadable}, unreadable}} {
		boot := vm.Boot{
			Config: vm.Config{Kernel: x86.BzImage{File: bytes.NewReader(bzImage(reset))}, Initrd: tc.initrd,
				Memory: 64 << 20, Reserved: 16 << 20, Topology: topology.OfCores(1)},
			CounterKHz: func() (uint32, error) { return 0, nil },
		}
		_, err := (x86.Board{}).Load(ram, boot)
		if !errors.Is(err, tc.want) || !errors.Is(err, vm.ErrSetup) || errors.Is(err, vm.ErrKernel) {
			t.Errorf("%+v: %v", tc.initrd, err)
		}
		if tc.want == unreadable && errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%v: nothing ended early", err)
		}
	}
}

// The kernel's own limit for its command line counts.
func TestCommandLineLimit(t *testing.T) {
	ram, err := guestmem.New(guestmem.Region{Mem: make([]byte, 8<<20)})
	if err != nil {
		t.Fatal(err)
	}
	for length, want := range map[int]error{100: nil, 101: vm.ErrCmdline} {
		boot := vm.Boot{
			Config: vm.Config{Kernel: x86.BzImage{File: bytes.NewReader(bzImage(reset))},
				Cmdline: strings.Repeat("x", length), Topology: topology.OfCores(1)},
			CounterKHz: func() (uint32, error) { return 0, nil },
		}
		if _, err := (x86.Board{}).Load(ram, boot); !errors.Is(err, want) {
			t.Errorf("%d bytes: %v", length, err)
		}
	}
}

// FuzzBzImage: any file as a kernel is loaded or refused. The memory is little and used again, and so are the seeds:
// what is found here is found in the header.
func FuzzBzImage(f *testing.F) {
	small := tinyBzImage()
	f.Add(small)
	f.Add(small[:0x270])
	for at, value := range map[int]byte{0x1f1: 0, 0x1f5: 1, 0x1f4: 1, 0x201: 0xff, 0x206: 9, 0x236: 0, 0x258: 1,
		0x25a: 0xff, 0x25f: 0x80, 0x262: 1} {
		seed := bytes.Clone(small)
		seed[at] = value
		f.Add(seed)
	}
	ram, err := guestmem.New(guestmem.Region{Base: 1 << 20, Mem: make([]byte, 64<<10)})
	if err != nil {
		f.Fatal(err)
	}
	if _, err := (x86.BzImage{File: bytes.NewReader(small)}).Load(ram); err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, image []byte) {
		k, err := x86.BzImage{File: bytes.NewReader(image)}.Load(ram)
		checkLoaded(t, k, err)
	})
}

// tinyBzImage is a bzImage of one sector of setup, that wants 1 MiB and little more than its entry point.
func tinyBzImage() []byte {
	const size = 0x220
	b := bzImage(nil)[:2*512+size]
	le := binary.LittleEndian
	b[0x1f1] = 1
	le.PutUint32(b[0x1f4:], size/16)
	le.PutUint64(b[0x258:], 1<<20)
	le.PutUint32(b[0x260:], 0x1000)
	return b
}

// checkLoaded: a kernel is refused as such, or has its entry point before its end.
func checkLoaded(t *testing.T, k vm.Kernel, err error) {
	t.Helper()
	if err != nil && !errors.Is(err, vm.ErrKernel) {
		t.Fatal(err)
	}
	if err == nil && (k.Entry < 1<<20 || k.Entry >= k.End || k.End > 1<<20+64<<10) {
		t.Fatalf("loaded from 1 MiB to %v, entered at %v", k.End, k.Entry)
	}
}
