package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/ptytest"
)

// pretends answers as a run does that has sessions, of which each is served by a function, and returns a command that
// opens one.
func pretends(t *testing.T, session func(in *bufio.Reader, conn net.Conn)) *exec.Cmd {
	t.Helper()
	p := newPlace(t)
	socket := filepath.Join(p.dir, "run.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				in := bufio.NewReader(conn)
				if request, _ := in.ReadString('\n'); strings.Contains(request, "status") {
					fmt.Fprintln(conn, `{"ktstr_vmm_control":1,"status":{"id":"a","name":"b"}}`+"\n"+`{"end":{}}`)
					return
				}
				fmt.Fprintln(conn, `{"ktstr_vmm_control":1,"opened":true,"data":"b3Blbgo="}`)
				session(in, conn)
			}()
		}
	}()
	return p.command("ctl", "--control", socket, "shell")
}

// Ctrl-A x leaves a run that takes nothing of what is typed, nor the window's size.
func TestCtlShellThatTakesNothing(t *testing.T) {
	t.Parallel()
	cmd := pretends(t, func(*bufio.Reader, net.Conn) { <-t.Context().Done() })
	x := ptytest.Start(t, hangLimit, cmd)
	x.Want("open")
	x.WantSettings(false)
	for range 4 {
		x.Type(strings.Repeat("x", maxKeys))
	}
	x.Want("\a") // there is no room for more
	x.Resize(50, 132)
	x.Type("\x01h")
	x.Want("shows this")
	x.Resize(51, 132)
	x.Type("\x01x")
	if code := x.ExitCode(); code != codeLeft {
		t.Errorf("exit code %d", code)
	}
	x.WantSettings(true)
}

// What is typed has an end, whatever it ends with, and even if it can't be read.
func TestCtlShellTypesAnEnd(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for text, want := range map[string]string{
		"": "\x04", "a\n": "a\n\x04", "a": "a\x04\x04", "\x00": "\x00\x04\x04", "a folder": "\x04",
	} {
		file := filepath.Join(dir, "typed")
		says := ""
		if text == "a folder" {
			file, says = dir, "is a directory"
		} else if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		stdin, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		typed := make(chan string, 1)
		cmd := pretends(t, func(in *bufio.Reader, conn net.Conn) {
			var all []byte
			for d := json.NewDecoder(in); len(all) < len(want); {
				var frame struct{ Data []byte }
				if d.Decode(&frame) != nil {
					break
				}
				all = append(all, frame.Data...)
			}
			typed <- string(all)
			fmt.Fprintln(conn, `{"end":{"exit_code":3}}`)
		})
		var said strings.Builder
		cmd.Stdin, cmd.Stderr = stdin, &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		code := ends(t, cmd)
		_ = stdin.Close()
		if got := <-typed; code != 3 || got != want || !strings.Contains(said.String(), says) ||
			says == "" && said.Len() > 0 {
			t.Errorf("%q: %q is typed, exit code %d, %s", text, got, code, &said)
		}
	}
}

// Who leaves before there is a shell has left it.
func TestCtlShellIsLeftBefore(t *testing.T) {
	t.Parallel()
	p := newPlace(t)
	socket := filepath.Join(p.dir, "run.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	cmd := p.command("ctl", "--control", socket, "shell")
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = cmd.Process.Signal(syscall.SIGTERM)
	if code := ends(t, cmd); code != codeLeft || said.Len() > 0 {
		t.Errorf("exit code %d, %s", code, &said)
	}
}
