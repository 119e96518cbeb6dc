package agent

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// The size of a terminal that nobody looks at.
const terminalRows, terminalColumns = 24, 80

// openTerminal returns a pseudoterminal's two sides, as os.Pipe does a pipe's: where the command's
// output comes out, and the command's own. ioctl_tty(2).
func openTerminal() (master, terminal *os.File, err error) {
	if master, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0); err != nil {
		return nil, nil, err
	}
	fd := int(master.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: terminalRows, Col: terminalColumns})
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
