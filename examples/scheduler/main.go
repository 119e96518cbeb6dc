// Command scheduler is an example of a scheduler under test: a global FIFO for sched_ext. Its flags make it go wrong in
// the ways in which schedulers do.
//
//	ktstr-vmm run --kernel ~/linux --scheduler ./scheduler -- ./stress
//
// The FIFO is fifo.bpf.c. On SIGTERM it steps down and says how much it did.
package main

import (
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
)

//go:generate go tool bpf2go -cc clang-19 -strip llvm-strip-19 -target bpfel -no-global-types fifo fifo.bpf.c

// options are how it goes wrong; the zero value, with a watchdog, is how it does not.
type options struct {
	exitAfter, panicAfter        time.Duration
	watchdog                     time.Duration
	forget                       string
	reject, noAttach, ignoreTerm bool
}

func main() {
	var o options
	flag.DurationVar(&o.exitAfter, "exit-after", 0, "end by itself after this time")
	flag.DurationVar(&o.panicAfter, "panic-after", 0, "panic after this time")
	flag.StringVar(&o.forget, "forget", "", "never let tasks of this name run, at most 15 bytes; a * stands for any rest")
	flag.DurationVar(&o.watchdog, "watchdog", maxWatchdog,
		"how long a task may wait until the kernel throws the scheduler out")
	flag.BoolVar(&o.reject, "reject", false, "load a program that the kernel's verifier rejects")
	flag.BoolVar(&o.noAttach, "no-attach", false, "never become the scheduler")
	flag.BoolVar(&o.ignoreTerm, "ignore-term", false, "do not end on SIGTERM")
	flag.Parse()
	if err := o.run(); err != nil {
		fmt.Fprintf(os.Stderr, "fifo: %v\n", err)
		os.Exit(1)
	}
}

// maxWatchdog is the longest that the kernel allows: SCX_WATCHDOG_MAX_TIMEOUT.
const maxWatchdog = 30 * time.Second

// maxComm is how long a task's name can be: TASK_COMM_LEN, with the zero at its end.
const maxComm = 15

func (o *options) run() error {
	spec, err := loadFifo()
	if err != nil {
		return err
	}
	if err := o.configure(spec); err != nil {
		return err
	}
	var fifo fifoObjects
	if err := spec.LoadAndAssign(&fifo, nil); err != nil {
		var rejected *ebpf.VerifierError
		if errors.As(err, &rejected) {
			return fmt.Errorf("%+v", rejected) // all that the verifier says
		}
		return err
	}
	defer fifo.Close()
	if !o.noAttach {
		l, err := link.AttachStructOps(link.StructOpsOptions{Map: fifo.Fifo})
		if err != nil {
			return err
		}
		defer l.Close()
		fmt.Println("fifo: enabled")
	}
	o.wait()
	return fifo.printCounters()
}

// configure sets what can be set before the scheduler is loaded.
func (o *options) configure(spec *ebpf.CollectionSpec) error {
	if len(o.forget) > maxComm {
		return fmt.Errorf("-forget %q: a task's name has at most %d bytes", o.forget, maxComm)
	}
	if o.watchdog < time.Millisecond || o.watchdog > maxWatchdog {
		return fmt.Errorf("-watchdog %v: it can be %v to %v", o.watchdog, time.Millisecond, maxWatchdog)
	}
	var forget [maxComm + 1]byte
	copy(forget[:], o.forget)
	if err := spec.Variables["forget"].Set(forget); err != nil {
		return err
	}
	if err := spec.Variables["reject"].Set(o.reject); err != nil {
		return err
	}
	return setTimeout(spec.Maps["fifo"], o.watchdog)
}

// setTimeout sets the field timeout_ms of a struct sched_ext_ops.
func setTimeout(ops *ebpf.MapSpec, d time.Duration) error {
	value, ok := ops.Contents[0].Value.([]byte)
	layout, ok2 := btf.As[*btf.Struct](ops.Value)
	if !ok || !ok2 {
		return fmt.Errorf("%s is no struct_ops", ops.Name)
	}
	for _, m := range layout.Members {
		if m.Name == "timeout_ms" {
			binary.LittleEndian.PutUint32(value[m.Offset.Bytes():], uint32(d.Milliseconds()))
			return nil
		}
	}
	return errors.New("struct sched_ext_ops has no timeout_ms")
}

// wait returns when the scheduler is to end.
func (o *options) wait() {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, os.Interrupt)
	if o.ignoreTerm {
		signals = nil // the signals come, and nobody looks
	}
	select {
	case <-signals:
	case <-after(o.exitAfter):
	case <-after(o.panicAfter):
		panic("fifo: as -panic-after asks")
	}
}

// after is time.After, but never for 0.
func after(d time.Duration) <-chan time.Time {
	if d == 0 {
		return nil
	}
	return time.After(d)
}

// printCounters prints how many tasks it had in its queue.
func (f *fifoObjects) printCounters() error {
	var enqueued, dispatched uint64
	if err := errors.Join(f.Enqueued.Get(&enqueued), f.Dispatched.Get(&dispatched)); err != nil {
		return err
	}
	fmt.Printf("fifo: enqueued %d dispatched %d\n", enqueued, dispatched)
	return nil
}
