package agent

import (
	"context"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// process is a child of the agent's. Its ID is its own until it was reaped, which only the agent
// does, so nothing is ever signalled that was not meant.
type process struct {
	pid    int
	reaper *reaper
	ended  chan struct{}   // closed when it was reaped
	status unix.WaitStatus // its end, from then on
}

// signalGroup signals the process's group, in which it is the first. It fails with
// os.ErrProcessDone where the process was reaped: its ID may be another's by now.
func (p *process) signalGroup(s unix.Signal) error {
	p.reaper.mu.Lock()
	defer p.reaper.mu.Unlock()
	select {
	case <-p.ended:
		return os.ErrProcessDone
	default:
		return unix.Kill(-p.pid, s)
	}
}

// reaper waits for all children, as PID 1 has to: its own and those whose parents are gone.
type reaper struct {
	signals chan os.Signal // holds one, so that a child which ends between two looks is not missed
	// fork calls what forks a child.
	fork func(func() (pid int, err error)) (int, error)

	mu      sync.Mutex // held from a child's start until it is known
	started map[int]*process
}

func startReaper() *reaper {
	r := &reaper{
		signals: make(chan os.Signal, 1), started: map[int]*process{},
		fork: func(fork func() (int, error)) (int, error) { return fork() },
	}
	signal.Notify(r.signals, unix.SIGCHLD)
	return r
}

// start starts a program.
func (r *reaper) start(p *program) (*process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	pid, err := r.fork(p.start)
	if err != nil {
		return nil, err
	}
	child := &process{pid: pid, reaper: r, ended: make(chan struct{})}
	r.started[pid] = child
	return child, nil
}

// setFork changes what calls what forks a child.
func (r *reaper) setFork(fork func(func() (pid int, err error)) (int, error)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fork = fork
}

// run reaps until ctx ends.
func (r *reaper) run(ctx context.Context) {
	defer signal.Stop(r.signals)
	for {
		r.reap()
		select {
		case <-ctx.Done():
			return
		case <-r.signals:
		}
	}
}

// reap waits for all children that have ended.
func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if p := r.started[pid]; p != nil {
			delete(r.started, pid)
			p.status = ws
			close(p.ended)
		}
	}
}

// shellCode is how a shell names the end of a process.
func shellCode(s unix.WaitStatus) int {
	if s.Signaled() {
		return codeSignalled + int(s.Signal())
	}
	return s.ExitStatus()
}

// procDir has the processes: proc(5).
const procDir = "/proc"

// descendants returns the processes that come from one and live, but for those of another, which are
// its children, theirs, and all of its session. A kernel's threads come from no process of PID 1's.
func descendants(of, except int) (pids []int) {
	entries, err := os.ReadDir(procDir)
	if err != nil {
		return nil
	}
	parents, alive := map[int]int{}, []int(nil)
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		text, err := os.ReadFile(procDir + "/" + e.Name() + "/stat")
		if err != nil {
			continue // it has ended
		}
		s, ok := parseStat(string(text))
		parents[pid] = s.parent
		if ok && s.alive && (except == 0 || s.session != except) {
			alive = append(alive, pid)
		}
	}
	for _, pid := range alive {
		p := pid
		// Bounded, for the links may be of different moments.
		for n := 0; p != of && p != except && p > 0 && n < len(parents); n++ {
			p = parents[p]
		}
		if p == of && pid != of {
			pids = append(pids, pid)
		}
	}
	return pids
}

// stat is what is looked at of /proc/PID/stat.
type stat struct {
	alive           bool
	parent, session int
}

// parseStat reads one; the second field, the program's name in parentheses, may have anything in it.
func parseStat(text string) (s stat, ok bool) {
	fields := strings.Fields(text[strings.LastIndexByte(text, ')')+1:])
	if len(fields) < 4 {
		return s, false
	}
	var err1, err2 error
	s.alive = fields[0] != "Z" && fields[0] != "X"
	s.parent, err1 = strconv.Atoi(fields[1])
	s.session, err2 = strconv.Atoi(fields[3])
	return s, err1 == nil && err2 == nil
}
