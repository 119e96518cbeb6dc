// Command scx_stats runs a scheduler that prints statistics, such as the kernel's own scx_simple and scx_qmap, and puts
// them into the run's messages as payload metrics:
//
//	ktstr-vmm run --kernel ~/linux --include ./scx_simple:/scx_simple \
//		--scheduler './scx_stats /scx_simple' -- ./stress
//
// All that the scheduler prints is passed on. A line's words of the form NAME=NUMBER are its statistics: of
// "local=3 global=17", which scx_simple prints every second, a message PMET is made:
//
//	{"payload_index":0,"metrics":[{"name":"local","value":3},{"name":"global","value":17}]}
//
// The scheduler gets the signals that this program gets, and this program ends as it does.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"github.com/ktstr/ktstr-vmm/pkg/ktstr"
)

func main() {
	code, err := run(os.Args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "scx_stats: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

// run runs a scheduler and returns its exit code, as a shell gives it.
func run(args []string) (int, error) {
	if len(args) == 0 {
		return 0, errors.New("usage: scx_stats SCHEDULER [ARG...]")
	}
	send := func(metrics) error { return nil }
	host, err := ktstr.Connect()
	switch {
	case err == nil:
		defer host.Close()
		send = func(m metrics) error { return host.Metrics(m) }
	case !errors.Is(err, ktstr.ErrNotInGuest):
		return 0, err
	}
	scheduler := exec.Command(args[0], args[1:]...)
	scheduler.Stderr = os.Stderr
	runtime.LockOSThread() // whose end would be the scheduler's
	scheduler.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := scheduler.StdoutPipe()
	if err != nil {
		return 0, err
	}
	// A signal is for the process group, and so for the scheduler, too. What it says then is still passed on.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)
	if err := scheduler.Start(); err != nil {
		return 0, err
	}
	failed := passOn(out, os.Stdout, send)
	err = scheduler.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	return shellCode(scheduler.ProcessState), failed
}

// passOn copies lines, and sends what statistics are in them. What can't be sent keeps no line from being passed on.
func passOn(from io.Reader, to io.Writer, send func(metrics) error) error {
	var failed error
	lines := bufio.NewReader(from)
	for {
		line, err := lines.ReadString('\n')
		if _, err := io.WriteString(to, line); err != nil {
			return err
		}
		if m := parse(line); len(m.Metrics) > 0 && failed == nil {
			failed = send(m)
		}
		if err == io.EOF {
			return failed
		}
		if err != nil {
			return err
		}
	}
}

// metrics is the content of a message PMET.
type metrics struct {
	PayloadIndex int      `json:"payload_index"`
	Metrics      []metric `json:"metrics"`
}

type metric struct {
	Name  string `json:"name"`
	Value int64  `json:"value"`
}

// parse returns the statistics of a line.
func parse(line string) (m metrics) {
	for word := range strings.FieldsSeq(line) {
		name, number, _ := strings.Cut(word, "=")
		if n, err := strconv.ParseInt(number, 10, 64); err == nil && name != "" {
			m.Metrics = append(m.Metrics, metric{name, n})
		}
	}
	return m
}

// shellCode is the exit code of a process that ended, or 128 and the signal's number.
func shellCode(state *os.ProcessState) int {
	if status, ok := state.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal())
	}
	return state.ExitCode()
}
