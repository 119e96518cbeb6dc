package qemu

import (
	"errors"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// A triple fault is found wherever the log's pieces end, and a log without end is not kept.
func TestLogWatch(t *testing.T) {
	const text = "CPU Reset (CPU 0)\nTriple fault\nCPU Reset (CPU 0)\n"
	for cut := range text {
		for _, rest := range []int{1, 5, len(text)} {
			w := &resetLog{}
			if _, err := w.Write([]byte(text[:cut])); err != nil {
				t.Fatal(err)
			}
			for left := text[cut:]; left != ""; left = left[min(rest, len(left)):] {
				if _, err := w.Write([]byte(left[:min(rest, len(left))])); err != nil {
					t.Fatal(err)
				}
			}
			if !w.tripleFault {
				t.Errorf("not found when cut at %d and every %d", cut, rest)
			}
		}
	}
	w := &resetLog{}
	for range 1000 {
		if _, err := w.Write([]byte(strings.Repeat("Triple faul\n", 1000))); err != nil {
			t.Fatal(err)
		}
	}
	if w.tripleFault || cap(w.rest) > 64<<10 {
		t.Errorf("found %t, %d bytes kept", w.tripleFault, cap(w.rest))
	}
}

// Why a guest ends is read from QEMU's events, in whatever pieces they come; a line without end is not kept.
func TestShutdownEvents(t *testing.T) {
	const hello = `{"QMP": {"version": {}}}` + "\n" + `{"return": {}}` + "\n"
	for text, want := range map[string]error{
		`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-shutdown"}}`: vm.ErrPowerOff,
		`{"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-reset"}}`:    vm.ErrReset,
		`{"event": "SHUTDOWN", "data": {"guest": false, "reason": "host-signal"}}`:   nil,
		`{"event": "RESUME"}`: nil,
		"":                    nil,
		strings.Repeat("x", 2*eventLimit) + "\n" + `{"event": "SHUTDOWN", "data": {"reason": "guest-reset"}}`: vm.ErrReset,
	} {
		for _, piece := range []int{1, 7, 1 << 20} {
			e := newShutdownEvents()
			for left := hello + text + "\n"; left != ""; left = left[min(piece, len(left)):] {
				if _, err := e.Write([]byte(left[:min(piece, len(left))])); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case <-e.ready():
			default:
				t.Error("it is not ready")
			}
			if err := e.ended(0); !errors.Is(err, want) || (err == nil) != (want == nil) {
				t.Errorf("%.80s: %v, want %v", text, err, want)
			}
			if err := e.ended(1); err != nil {
				t.Errorf("%.80s, with an exit status of 1: %v", text, err)
			}
			if cap(e.line) > 4*eventLimit {
				t.Errorf("%d bytes are kept", cap(e.line))
			}
		}
	}
	select {
	case <-newShutdownEvents().ready():
		t.Error("ready at once")
	default:
	}
}
