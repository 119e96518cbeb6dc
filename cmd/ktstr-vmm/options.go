package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// options are the flags that every run of a guest takes.
type options struct {
	memory, shmSize size
	topologyFlags
	accel string

	timeout, grace, poll time.Duration

	report, reportFormat string
	metricsListen        string
	metricsLinger        time.Duration
	logLevel, logFormat  string

	console      string // file for the console, "-" for stdout
	consoleLimit size
	verbose      bool

	// linux is for guests that run a command under Linux: the command's output is ours, and nothing
	// else is shown unless something went wrong.
	linux bool
}

var (
	reportFormats = []string{"text", "json", "junit"}
	logLevels     = []string{"debug", "info", "warn", "error"}
	logFormats    = []string{"console", "json"}
)

const (
	maxCPUs = 32
	minPoll = 100 * time.Microsecond
	maxPoll = time.Second
)

func (o *options) register(c *cobra.Command) {
	o.memory, o.shmSize = vm.DefaultMemory, vm.DefaultReserved
	f := c.Flags()
	f.SortFlags = false
	f.Var(&o.memory, "memory", "the guest's RAM, the ring included")
	o.topologyFlags.register(f)
	f.Var(&o.shmSize, "shm-size", "the ring's region at the top of the RAM, 8K to 1G")
	f.StringVar(&o.accel, "accel", string(accel.Auto),
		strings.Join(accel.Modes(), ", ")+": who runs the guest; auto is KVM where it can be used for it")
	f.DurationVar(&o.timeout, "timeout", run.DefaultTimeout, "the hard deadline: the machine is stopped")
	f.DurationVar(&o.grace, "grace", run.DefaultGrace,
		"how long before that the guest is asked to stop; at most half of --timeout, 0 for never")
	f.DurationVar(&o.poll, "poll", monitor.DefaultPoll, "how often the ring is read")
	f.StringVar(&o.report, "report", "", "file for the report, - for stdout")
	f.StringVar(&o.reportFormat, "report-format", "text", strings.Join(reportFormats, ", "))
	f.StringVar(&o.metricsListen, "metrics-listen", "", "address to serve Prometheus metrics on, such as 127.0.0.1:0")
	f.DurationVar(&o.metricsLinger, "metrics-linger", 0, "how long to serve them after the run")
	f.StringVar(&o.logLevel, "log-level", "info", strings.Join(logLevels, ", "))
	f.StringVar(&o.logFormat, "log-format", "console", strings.Join(logFormats, ", "))
}

// checkMemory judges the sizes for a board.
func (o *options) checkMemory(b vm.Board) error {
	layout, err := b.Layout(uint64(o.memory), uint64(o.shmSize))
	if err != nil {
		return fmt.Errorf("--memory %v, --shm-size %v: %w", &o.memory, &o.shmSize, err)
	}
	if nodes := o.topology.Nodes; nodes > 0 {
		if _, err := layout.Nodes(nodes); err != nil {
			return fmt.Errorf("--memory %v, --shm-size %v, --numa %s: %w", &o.memory, &o.shmSize, o.numa, err)
		}
	}
	return nil
}

// check judges the flags' values; an error names the flag.
func (o *options) check() error {
	if o.memory == 0 || o.shmSize == 0 {
		return fmt.Errorf("--memory %v, --shm-size %v: neither can be 0", &o.memory, &o.shmSize)
	}
	if err := o.topologyFlags.check(); err != nil {
		return err
	}
	for _, d := range []struct {
		flag             string
		value, low, high time.Duration
	}{
		{"--timeout", o.timeout, time.Millisecond, 365 * 24 * time.Hour},
		{"--grace", o.grace, 0, 365 * 24 * time.Hour},
		{"--poll", o.poll, minPoll, maxPoll},
		{"--metrics-linger", o.metricsLinger, 0, 365 * 24 * time.Hour},
	} {
		if d.value < d.low || d.value > d.high {
			return fmt.Errorf("%s %v: it can be %v to %v", d.flag, d.value, d.low, d.high)
		}
	}
	for _, w := range []struct {
		flag, value string
		words       []string
	}{
		{"--accel", o.accel, accel.Modes()},
		{"--report-format", o.reportFormat, reportFormats},
		{"--log-level", o.logLevel, logLevels},
		{"--log-format", o.logFormat, logFormats},
	} {
		if !slices.Contains(w.words, w.value) {
			return fmt.Errorf("%s %q: it is one of %s", w.flag, w.value, strings.Join(w.words, ", "))
		}
	}
	return nil
}
