// Command workload gives a scheduler something to do, for a time:
//
//	workload cpu [-threads N] [-time T]	N threads that only compute
//	workload pingpong [-time T]		two processes that wake each other through pipes
//
// It prints what it did.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "workload: %v\n", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: workload cpu [-threads N] [-time T], or: workload pingpong [-time T]")

func run(args []string) error {
	if len(args) == 0 {
		return errUsage
	}
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	threads := f.Int("threads", runtime.NumCPU(), "how many compute")
	span := f.Duration("time", time.Second, "for how long")
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	if *threads < 1 {
		return fmt.Errorf("-threads %d: it is 1 at least", *threads)
	}
	switch args[0] {
	case "cpu":
		return compute(*threads, *span)
	case "pingpong":
		return pingPong(*span)
	case "echo":
		_, err := io.CopyBuffer(struct{ io.Writer }{os.Stdout}, struct{ io.Reader }{os.Stdin}, make([]byte, 1))
		return err
	}
	return errUsage
}

// compute keeps threads busy, for a time that begins when all of them run.
func compute(threads int, span time.Duration) error {
	runtime.GOMAXPROCS(threads + 1) // with one to end them
	var stop atomic.Bool
	rounds := make([]uint64, threads)
	var running, all sync.WaitGroup
	running.Add(threads)
	for i := range rounds {
		all.Go(func() {
			runtime.LockOSThread()
			running.Done()
			for !stop.Load() {
				rounds[i]++
			}
		})
	}
	running.Wait()
	time.Sleep(span)
	stop.Store(true)
	all.Wait()
	fmt.Printf("cpu: %d threads, %d rounds of the slowest\n", threads, slices.Min(rounds))
	return nil
}

// pingPong sends a byte to another process and waits for it to come back, again and again.
func pingPong(span time.Duration) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	other := exec.Command(self, "echo")
	other.Stderr = os.Stderr
	to, err := other.StdinPipe()
	if err != nil {
		return err
	}
	from, err := other.StdoutPipe()
	if err != nil {
		return err
	}
	if err := other.Start(); err != nil {
		return err
	}
	rounds, ball := 0, []byte{0}
	for end := time.Now().Add(span); time.Now().Before(end); rounds++ {
		if _, err := to.Write(ball); err != nil {
			return err
		}
		if _, err := io.ReadFull(from, ball); err != nil {
			return err
		}
	}
	if err := errors.Join(to.Close(), other.Wait()); err != nil {
		return err
	}
	fmt.Printf("pingpong: %d rounds\n", rounds)
	return nil
}
