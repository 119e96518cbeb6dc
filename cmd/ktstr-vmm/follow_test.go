package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/internal/testenv"
	"github.com/ktstr/ktstr-vmm/internal/vmtest"
	"github.com/ktstr/ktstr-vmm/pkg/guestmem"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// ringFile is a file that this process has mapped, and writes a ring in.
type ringFile struct {
	t      *testing.T
	path   string
	region *guestmem.Window
	writer *shm.Writer
	reader *shm.Reader
}

func newRingFile(t *testing.T, size int) *ringFile {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "ring"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(size)); err != nil {
		t.Fatal(err)
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Munmap(mem) })
	memory, err := guestmem.New(guestmem.Region{Base: 0, Mem: mem})
	if err != nil {
		t.Fatal(err)
	}
	r := &ringFile{t: t, path: f.Name()}
	if r.region, err = memory.Window(0, uint64(size)); err != nil {
		t.Fatal(err)
	}
	r.anew()
	return r
}

// anew begins the ring anew.
func (r *ringFile) anew() {
	r.t.Helper()
	err := shm.Init(r.region)
	if err == nil {
		r.writer, err = shm.NewWriter(r.region)
	}
	if err == nil {
		r.reader, err = shm.NewReader(r.region, shm.Limits{})
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

func (r *ringFile) write(typ shm.Type, payload string) {
	r.t.Helper()
	if err := r.writer.Write(typ, []byte(payload)); err != nil {
		r.t.Fatal(err)
	}
}

func (r *ringFile) drain() { r.reader.Drain(func(shm.Message) bool { return true }) }

// follower is an "inspect --follow" that runs, whose stdout is read line by line.
type follower struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines *bufio.Reader
	said  bytes.Buffer // on stderr
}

func follow(t *testing.T, program string, args ...string) *follower {
	t.Helper()
	f := &follower{t: t, cmd: exec.Command(program, append([]string{"inspect", "--follow"}, args...)...)}
	stdout, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.cmd.Stderr = &f.said
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.cmd.Process.Kill() })
	f.lines = bufio.NewReader(stdout)
	return f
}

// until reads lines up to one that has all of these words, and returns what was read.
func (f *follower) until(words ...string) (read string) {
	f.t.Helper()
	timer := time.AfterFunc(hangLimit, func() { f.cmd.Process.Kill() })
	defer timer.Stop()
	for {
		line, err := f.lines.ReadString('\n')
		read += line
		if err != nil {
			f.t.Fatalf("no line with %q, %v:\n%s%s", words, err, read, &f.said)
		}
		all := true
		for _, w := range words {
			all = all && strings.Contains(line, w)
		}
		if all {
			return read
		}
	}
}

// ends ends it by a signal, if it is not 0, and reports any other exit code than this one.
func (f *follower) ends(sig syscall.Signal, code int) {
	f.t.Helper()
	if sig != 0 {
		f.cmd.Process.Signal(sig)
	}
	if got := ends(f.t, f.cmd); got != code {
		f.t.Errorf("exit code %d, want %d; %s", got, code, &f.said)
	}
}

// One process writes a ring, another one follows it.
func TestFollow(t *testing.T) {
	t.Parallel()
	path := program(t)
	for name, test := range map[string]func(*testing.T, string){
		"file": testFollowFile, "JSON": testFollowJSON, "broken file": testFollowBrokenFile,
		"stuck reader": testFollowStuckReader, "running guest": testFollowRunningGuest,
	} {
		t.Run(name, func(t *testing.T) { test(t, path) })
	}
}

// While this process writes a ring in a file, another one shows what comes, and leaves the file as it is.
func testFollowFile(t *testing.T, path string) {
	r := newRingFile(t, 8<<10)
	r.write(shm.ScenarioStart, "")
	r.drain()
	r.write(shm.TestResult, `{"name":"unread"}`)
	f := follow(t, path, r.path)
	if got := f.until("TEST", "unread"); !strings.Contains(got, "magic      0x53544d52\n") ||
		strings.Contains(got, "SCST") {
		t.Errorf("%s", got)
	}
	r.drain()
	for i := range 20 { // some laps
		r.write(shm.RawOutput, strings.Repeat("x", 1000))
		r.drain()
		r.write(shm.TestResult, fmt.Sprintf(`{"name":"%d"}`, i))
		if got := f.until(fmt.Sprintf(`"name":"%d"`, i)); strings.Count(got, "RAWO  1000 bytes") != 1 {
			t.Fatalf("message %d: %s", i, got)
		}
	}
	for range 40 { // more than it can look at, as there is only a moment
		r.write(shm.RawOutput, strings.Repeat("x", 1000))
		r.drain()
	}
	r.write(shm.Crash, "after a flood")
	f.until("CRSH", "after a flood")
	for r.writer.Write(shm.RawOutput, make([]byte, 100)) == nil {
	}
	f.until("1 messages were dropped, 1 in all")
	r.anew()
	r.write(shm.Exit, "\x03\x00\x00\x00")
	if got := f.until("EXIT", "code 3"); !strings.Contains(got, "the ring was begun anew") {
		t.Errorf("%s", got)
	}
	f.ends(os.Interrupt.(syscall.Signal), 130)
}

// JSON lines, of some types; --since leaves out what was there; the file's end is that of following.
func testFollowJSON(t *testing.T, path string) {
	r := newRingFile(t, 64<<10)
	r.write(shm.Exit, "\x01\x00\x00\x00")
	all := follow(t, path, "--json", "--all", r.path)
	some := follow(t, path, "--json", "--type", "exit,0x42", "--type", "CRSH", "--since", "0s", r.path)
	all.until(`"event":"begin"`, `"capacity":65496`)
	some.until(`"event":"begin"`)
	all.until(`"type": "EXIT"`, `"payload": "01000000"`)
	drops, err := r.region.Uint64(32)
	if err != nil {
		t.Fatal(err)
	}
	drops.Store(1)
	all.until(`"event":"drops"`)
	some.until(`"event":"drops"`) // so it has seen the message, too, and does not show it
	r.write(shm.Stdout, "not wanted")
	r.write(0x42, "wanted")
	r.write(shm.Exit, "\x02\x00\x00\x00")
	if err := os.Remove(r.path); err != nil {
		t.Fatal(err)
	}
	for f, want := range map[*follower][]string{
		all:  {`"type": "0x5354444f", "type_id": 1398031439, "size": 10,`, `"type": "0x00000042"`, `"payload": "02000000"`},
		some: {`"type": "0x00000042"`, `"payload": "02000000", "crc_ok": true}`},
	} {
		got := f.until(`"event":"end"`, `"detail":"the file is gone"`)
		lines := strings.Split(strings.TrimSpace(got), "\n")
		if len(lines) != len(want)+1 {
			t.Fatalf("%s", got)
		}
		for i, line := range lines {
			var object struct {
				At time.Time `json:"at"`
			}
			if err := json.Unmarshal([]byte(line), &object); err != nil || time.Since(object.At) > time.Hour ||
				i < len(want) && !strings.Contains(line, want[i]) {
				t.Errorf("%v: %s", err, line)
			}
		}
		f.ends(0, 0)
	}
}

// A file that gets shorter, breaks the protocol or is replaced by another one ends following, or is said.
func testFollowBrokenFile(t *testing.T, path string) {
	r := newRingFile(t, 8<<10)
	f := follow(t, path, r.path)
	r.write(shm.Exit, "\x01\x00\x00\x00")
	f.until("EXIT", "code 1")
	word, err := r.region.Uint64(16) // write_ptr
	if err != nil {
		t.Fatal(err)
	}
	word.Store(1 << 40)
	f.until("--", "write_ptr 0x10000000000 is")
	other := newRingFile(t, 8<<10)
	if err := os.Rename(other.path, r.path); err != nil {
		t.Fatal(err)
	}
	f.until("another file has taken its place")
	f.ends(0, 1)

	cut := follow(t, path, r.path)
	cut.until("control")
	if err := os.Truncate(r.path, 10); err != nil {
		t.Fatal(err)
	}
	cut.ends(0, 1)
	if !strings.Contains(cut.said.String(), "has become too short for its ring") {
		t.Errorf("%s", &cut.said)
	}
}

// Who does not read what is shown holds up neither the writer nor the end.
func testFollowStuckReader(t *testing.T, path string) {
	r := newRingFile(t, 1<<20)
	f := follow(t, path, "--json", r.path) // whose stdout is read no further than this
	r.write(shm.ScenarioStart, "")
	f.until("SCST")
	for range 500 {
		for r.writer.Write(shm.RawOutput, make([]byte, 20_000)) != nil {
			r.drain()
		}
	}
	f.ends(syscall.SIGTERM, 143)
}

// The RAM of a guest that runs is followed until the guest's end.
func testFollowRunningGuest(t *testing.T, path string) {
	for _, arch := range guest.Architectures {
		t.Run(arch, func(t *testing.T) {
			testenv.EmulatorOf(t, arch)
			demo := exec.Command(path, "demo", "--accel", "emulator", "--arch", arch, "--scenario", "ok,steps=40,step_ms=50")
			if err := demo.Start(); err != nil {
				t.Fatal(err)
			}
			defer ends(t, demo)
			defer demo.Process.Kill()
			var f *follower
			for deadline := time.Now().Add(hangLimit); f == nil; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatal("the guest has no ring")
				}
				ram := fileOfRAM(t, demo.Process.Pid)
				if ram == "" {
					continue
				}
				args := []string{"--all", ram}
				if arch == "x86_64" {
					args = append(args, "--offset", fmt.Sprint(vmtest.TraitsOf(arch).RingBase))
				}
				// It may have no ring yet, or on arm64 no tree.
				if exec.Command(path, append([]string{"inspect"}, args...)...).Run() == nil {
					f = follow(t, path, args...)
				}
			}
			if got := f.until("EXIT", "code 0"); strings.Count(got, "  STIM  ") != 40 {
				t.Errorf("%s", got)
			}
			f.until("the file is gone")
			f.ends(0, 0)
		})
	}
}
