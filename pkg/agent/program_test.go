package agent

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// A program finds an empty stdin, its folder, and of two values of a variable the later one.
func TestProgram(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p := program{
		args: []string{"/bin/sh", "-c", `read line || echo "A=$A B=$B $(pwd)"; echo err >&2`},
		env:  []string{"A=1", "B=x", "A=2", "AB=3"},
		dir:  "/", stdout: w, stderr: w,
	}
	pid, err := p.start()
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	said, err := io.ReadAll(r)
	if err != nil || string(said) != "A=2 B=x /\nerr\n" {
		t.Errorf("%q, %v", said, err)
	}
	var ws unix.WaitStatus
	if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || shellCode(ws) != 0 {
		t.Errorf("exit code %d, %v", shellCode(ws), err)
	}
}

func TestProgramThatIsNotThere(t *testing.T) {
	p := program{args: []string{"/no/such/program"}, dir: "/", stdout: os.Stdout, stderr: os.Stderr}
	_, err := p.start()
	if !errors.Is(err, fs.ErrNotExist) || err.Error() != "fork/exec /no/such/program: no such file or directory" ||
		startCode(err) != codeNotFound {
		t.Errorf("%v, code %d", err, startCode(err))
	}
}
