package exporter

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// How long a run without a connection is waited for.
const (
	orphanLimit  = time.Minute      // while its process is there
	unknownLimit = 10 * time.Second // where that can't be seen, as in another PID namespace
)

// process is a run's process.
type process struct {
	pid   int
	birth string
}

// peer returns the process at a connection's other end. It fails if that is another user's.
func peer(conn *net.UnixConn) (process, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return process{}, err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) {
		cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return process{}, err
	}
	if failed != nil {
		return process{}, failed
	}
	if uid := os.Geteuid(); int(cred.Uid) != uid && cred.Uid != 0 {
		return process{}, fmt.Errorf("a process of the user %d, and this is the user %d's exporter", cred.Uid, uid)
	}
	return process{int(cred.Pid), birthOf(int(cred.Pid))}, nil
}

// birthOf returns when a process was started, in the kernel's words, or "" if there is none: proc_pid_stat(5).
func birthOf(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return ""
	}
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:]) // a name can have anything in it
	const state, start = 0, 19
	if len(fields) <= start || fields[state][0] == 'Z' { // nobody has asked yet how it ended
		return ""
	}
	return string(fields[start])
}

func (p process) alive() bool { return p.birth != "" && birthOf(p.pid) == p.birth }
