package agent

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// listen makes a socket at a path. By system calls: package net would make the agent larger by
// a fifth.
func listen(path string) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: making a socket: %w", path, err)
	}
	listener := os.NewFile(uintptr(fd), path)
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		err = unix.Listen(fd, unix.SOMAXCONN)
	}
	if err != nil {
		listener.Close()
		return nil, fmt.Errorf("%s: listening: %w", path, err)
	}
	return listener, nil
}

// accept waits for a connection, until the listener is closed.
func accept(listener *os.File) (*os.File, error) {
	raw, err := listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var failure error
	err = raw.Read(func(l uintptr) (done bool) {
		for {
			fd, _, failure = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			if failure != unix.EINTR && failure != unix.ECONNABORTED {
				return failure != unix.EAGAIN
			}
		}
	})
	if err = errors.Join(err, failure); err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), listener.Name()), nil
}
