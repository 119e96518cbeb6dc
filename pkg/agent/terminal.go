package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/call"
)

// The size of a terminal whose user has not said one.
const terminalRows, terminalColumns = 24, 80

// openTerminal returns a pseudoterminal's two sides, as os.Pipe does a pipe's: where the command's
// output comes out, and the command's own. ioctl_tty(2).
func openTerminal(size call.WindowSize) (master, terminal *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	if size.Rows == 0 || size.Cols == 0 {
		size = call.WindowSize{Rows: terminalRows, Cols: terminalColumns}
	}
	number := 0
	err = control(master, func(fd int) (err error) {
		if number, err = unix.IoctlGetInt(fd, unix.TIOCGPTN); err != nil {
			return err
		}
		return unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	})
	if err == nil {
		err = resize(master, size)
	}
	if err == nil {
		terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("making a terminal: %w", err)
	}
	return master, terminal, nil
}

// control calls f with a file's descriptor. (Fd would make the file one whose reads no Close ends.)
func control(file *os.File, f func(fd int) error) error {
	conn, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	if err := conn.Control(func(fd uintptr) { failure = f(int(fd)) }); err != nil {
		return err
	}
	return failure
}

// resize gives a terminal another size. Its programs get a SIGWINCH.
func resize(master *os.File, size call.WindowSize) error {
	return control(master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
}

// endOfInput types what ends a terminal's input, after what was typed last: a program that reads lines sees the end
// there, after a line that has no end yet. One that reads keys sees Ctrl-D.
func endOfInput(last byte) []byte {
	const ctrlD = 4
	if last == 0 || last == '\n' {
		return []byte{ctrlD}
	}
	return []byte{ctrlD, ctrlD}
}

// terminalOutput is what comes out of a terminal, to its end. Linux looks for output before it looks for the last
// close of the other side, so that what was written between the two looks is behind the EIO that means the end: it
// is there for another read (n_tty_read in drivers/tty/n_tty.c).
type terminalOutput struct{ io.ReadCloser }

func (o terminalOutput) Read(buf []byte) (int, error) {
	n, err := o.ReadCloser.Read(buf)
	if errors.Is(err, unix.EIO) {
		n, err = o.ReadCloser.Read(buf)
	}
	return n, err
}
