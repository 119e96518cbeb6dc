package control

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeLimit is how long it takes at most to see whether somebody listens at a socket.
const probeLimit = time.Second

// ErrInUse means that somebody else listens at the path.
var ErrInUse = errors.New("another process listens there")

// listener is a socket that has a name while it listens: one with a name at which nobody listens was left behind.
type listener struct {
	*net.UnixListener
	path string
	file fs.FileInfo // what path was when it was ours
}

// listen makes a socket. It takes the place of one that was left behind, and fails with ErrInUse if somebody listens.
func listen(path string) (l *listener, err error) {
	dir := filepath.Dir(path)
	temp := filepath.Join(dir, "."+rand.Text()[:8])
	if n := max(len(path), len(temp)); n > maxPath {
		return nil, fmt.Errorf("%s: the path of a socket has at most %d bytes, this one would need %d", path, maxPath, n)
	}
	socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if errno := syscall.Errno(0); errors.As(err, &errno) { // the rest of it is of temp
		return nil, fmt.Errorf("making a socket in %s: %w", dir, errno)
	}
	if err != nil {
		return nil, err
	}
	l = &listener{UnixListener: socket, path: path} // it removes temp when it is closed
	defer func() {
		if err != nil {
			_ = socket.Close()
		}
	}()
	if err := os.Chmod(temp, 0o600); err != nil {
		return nil, err
	}
	if l.file, err = os.Lstat(temp); err != nil {
		return nil, err
	}
	err = os.Link(temp, path)
	if errors.Is(err, fs.ErrExist) {
		err = takeOver(path, func() error { return os.Link(temp, path) })
	}
	if errors.Is(err, fs.ErrExist) { // somebody was faster
		err = inUse(path)
	}
	if err != nil {
		return nil, err
	}
	socket.SetUnlinkOnClose(false)
	return l, os.Remove(temp)
}

func inUse(path string) error { return fmt.Errorf("%s: %w", path, ErrInUse) }

// takeOver removes a socket that was left behind and calls link. Who does so has the folder locked, or it might remove
// the socket that somebody else has just put there.
func takeOver(path string, link func() error) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", dir.Name(), err)
	}
	info, err := os.Lstat(path)
	if err == nil && info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%s is there and no socket", path)
	}
	conn, err := net.DialTimeout("unix", path, probeLimit)
	switch {
	case err == nil:
		_ = conn.Close()
		return inUse(path)
	case errors.Is(err, unix.ECONNREFUSED):
		if err := os.Remove(path); err != nil {
			return err
		}
	case !errors.Is(err, fs.ErrNotExist):
		return errors.Join(inUse(path), err)
	}
	return link()
}

// Close stops listening and removes the socket, unless another one has its name by now.
func (l *listener) Close() error {
	info, err := os.Lstat(l.path)
	if err == nil && os.SameFile(info, l.file) {
		err = os.Remove(l.path)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, l.UnixListener.Close())
}

// peer checks who is at a connection's other end: this user, or root.
func peer(conn *net.UnixConn) (*unix.Ucred, error) {
	cred, err := credentials(conn)
	if err != nil {
		return nil, err
	}
	if uid := os.Geteuid(); int(cred.Uid) != uid && cred.Uid != 0 {
		return nil, &Error{CodeDenied, fmt.Sprintf("the run is the user %d's, and this is a process of the user %d",
			uid, cred.Uid)}
	}
	return cred, nil
}

// credentials are those of who listened or connected at the other end.
func credentials(conn *net.UnixConn) (cred *unix.Ucred, err error) {
	errControl := control(conn, func(fd int) { cred, err = unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED) })
	return cred, errors.Join(errControl, err)
}

// hungUp reports whether who was at the other end is gone. One that has only finished sending is not.
func hungUp(conn *net.UnixConn) bool {
	gone := false
	err := control(conn, func(fd int) {
		poll := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP is not asked for, it comes: poll(2)
		_, err := unix.Poll(poll, 0)
		gone = err == nil && poll[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}

func control(conn *net.UnixConn, do func(fd int)) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	return raw.Control(func(fd uintptr) { do(int(fd)) })
}
