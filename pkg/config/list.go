package config

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/ktstr/ktstr-vmm/guest"
	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/kernel"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Bounds of durations.
const (
	year    = 365 * 24 * time.Hour
	minPoll = 100 * time.Microsecond
	maxPoll = time.Second
	maxWait = 24 * time.Hour
)

// DefaultConsoleLimit is how much of a console is written, in bytes: a guest may write without end.
const DefaultConsoleLimit = 64 << 20

// The values of exporter that are no path.
const (
	ExporterAuto = "auto"
	ExporterNone = "none"
)

// The values of control that are no path.
const (
	ControlAuto = "auto"
	ControlNone = "none"
)

// KernelIs says what a kernel's path is one of.
const KernelIs = "a bzImage, a vmlinux or an arm64 Image, or the folder of one: a build tree or an unpacked package"

// lister makes the list of settings.
type lister struct {
	s     *Settings
	flags *pflag.FlagSet // makes flags of a kind; no arguments are parsed with it
}

// add puts what the flag set has got to the end of the list.
func (l *lister) add(key string) *Setting {
	x := &Setting{Flag: l.flags.Lookup(key), Source: key}
	l.s.list = append(l.s.list, x)
	return x
}

func (l *lister) text(at *string, key, value, usage string) *Setting {
	l.flags.StringVar(at, key, value, usage)
	return l.add(key)
}

func (l *lister) texts(at *[]string, key, usage string) {
	l.flags.StringArrayVar(at, key, nil, usage)
	l.add(key)
}

func (l *lister) word(at *string, key, value string, words []string, usage string) {
	x := l.text(at, key, value, usage)
	x.Words = words
	x.check = func() error {
		if !slices.Contains(words, *at) {
			return fmt.Errorf("it is one of %s", strings.Join(words, ", "))
		}
		return nil
	}
}

func (l *lister) size(at *Size, key string, value Size, usage string) {
	*at = value
	l.flags.Var(at, key, usage)
	l.add(key)
}

func (l *lister) duration(at *time.Duration, key string, value, low, high time.Duration, usage string) {
	l.flags.DurationVar(at, key, value, usage)
	l.add(key).check = func() error {
		if *at < low || *at > high {
			return fmt.Errorf("it can be %v to %v", low, high)
		}
		return nil
	}
}

func (l *lister) flag(at *bool, key, short, usage string) {
	l.flags.BoolVarP(at, key, short, false, usage)
	l.add(key)
}

// run lists what a Linux guest is told.
func (l *lister) run() {
	s := l.s
	l.text(&s.Kernel, "kernel", "", "the kernel: "+KernelIs)
	l.texts(&s.Modules, "module",
		"'NAME [PARAM=VALUE...]', a module of the kernel's to load, after what it needs; from DIR, or beside FILE")
	l.text(&s.Initrd, "initrd", "", "an initramfs to put below what is made for the command")
	l.text(&s.Append, "append", "", "what to add to the kernel's command line")
	l.text(&s.CmdlineOnly, "cmdline-only", "", "all of it, but for the ring's parameters")
	l.text(&s.Sysroot, "sysroot", "",
		"a folder in which the programs and what they need are looked up, as for another architecture")
	l.texts(&s.Include, "include", "SRC[:DST], a file or a folder that the guest gets; a program brings its libraries")
	scheduler := l.text(&s.Scheduler, "scheduler", "",
		"'PATH ARG...', the scheduler under test: started before the command, and watched")
	scheduler.check = func() error {
		if scheduler.Changed && strings.TrimSpace(s.Scheduler) == "" {
			return fmt.Errorf("it is a program and its arguments")
		}
		return nil
	}
	l.duration(&s.SchedulerWait, "scheduler-wait", 10*time.Second, time.Millisecond, maxWait,
		"how long it may take to become the scheduler, before the command starts")
	l.dumps()
	l.texts(&s.Env, "env", "NAME=VALUE, in the command's environment")
	l.word(&s.ShmReserve, "shm-reserve", "no-map", []string{"no-map", "cacheable"}, "how an arm64 kernel is kept off the "+
		"ring: no-map, for every kernel; cacheable, faster, for one without STRICT_DEVMEM")
	l.flag(&s.TTY, "tty", "t", "give the command a terminal; all of its output comes on stdout then")
	l.flag(&s.Interactive, "interactive", "i",
		"the command reads this terminal; with --tty, as its own: Ctrl-A x leaves it, Ctrl-A h helps")
	l.flag(&s.ShellOnFailure, "shell-on-failure", "",
		"if the command fails, and this is a terminal, open a shell in the guest before it ends")
	l.text(&s.Console, "console", "", "file for the guest's console as it is, - for stdout")
	l.size(&s.ConsoleLimit, "console-limit", DefaultConsoleLimit, "how much of it --console takes")
	l.flag(&s.Verbose, "verbose", "",
		"show the guest's console on stderr, control characters made visible, and let its kernel say more")
	l.flags.StringArrayVar(&s.Command, "command", nil, "the program to run in the guest, and its arguments")
	l.add("command").NoFlag = true
}

// dumps lists when a guest is asked for a dump.
func (l *lister) dumps() {
	s := l.s
	l.flags.StringSliceVar(&s.DumpOn, "dump-on", []string{dumpOnTimeout},
		"when to ask for a dump of the scheduler's state: timeout, at the soft deadline; stall; none")
	on := l.add("dump-on")
	on.Words = []string{dumpOnTimeout, dumpOnStall, "none"}
	on.check = func() error {
		for _, word := range s.DumpOn {
			if !slices.Contains(on.Words, word) {
				return fmt.Errorf("%q: it is one or more of timeout, stall, or none", word)
			}
		}
		return nil
	}
	l.flags.IntVar(&s.StallPolls, "stall-polls", 0, "a stall is so many polls in a row without a STIM; 0 for never")
	l.add("stall-polls").check = func() error { return atLeast0(float64(s.StallPolls)) }
	l.flags.Float64Var(&s.StallRate, "stall-rate", 0, "or fewer messages a second than this; 0 for never")
	l.add("stall-rate").check = func() error { return atLeast0(s.StallRate) }
}

func atLeast0(v float64) error {
	if !(v >= 0) || math.IsInf(v, 0) {
		return fmt.Errorf("it can be 0 or more")
	}
	return nil
}

// demo lists what the embedded guest is told.
func (l *lister) demo() {
	s := l.s
	scenario := l.text(&s.Scenario, "scenario", "ok",
		"what the guest does, as NAME[,PARAM=VALUE…]: "+strings.Join(guest.Scenarios, ", ")+
			"; parameters: "+strings.Join(guest.Parameters, ", "))
	scenario.check = func() error {
		_, _, err := guest.ParseScenario(s.Scenario)
		return err
	}
	l.word(&s.Arch, "arch", kernel.HostArch(), guest.Architectures,
		"the guest's architecture: "+strings.Join(guest.Architectures, ", "))
}

// both lists what every guest is told.
func (l *lister) both() {
	s := l.s
	l.size(&s.Memory, "memory", vm.DefaultMemory, "the guest's RAM, the ring included")
	l.text(&s.CPUs, "cpus", "1",
		"the guest's processors: a number of cores, or sockets=S,dies=D,cores=C,threads=T").check = s.checkCPUs
	l.text(&s.LLC, "llc", "", "cores=K: how many cores of a die share a last-level cache, all by default")
	l.text(&s.NUMA, "numa", "", "N[,distance=D]: divide processors and memory among NUMA nodes; "+
		"distance=ROW/ROW/… with rows of D:D:… for all distances")
	l.text(&s.Pin, "pin", "", "pin the processors' threads to CPUs of the host: auto, or a list such as 0-3,8")
	l.size(&s.ShmSize, "shm-size", vm.DefaultReserved, "the ring's region at the top of the RAM, 8K to 1G")
	l.word(&s.Accel, "accel", string(accel.Auto), accel.Modes(),
		strings.Join(accel.Modes(), ", ")+": who runs the guest; auto is KVM where it can be used for it")
	usage := "the hard deadline: the machine is stopped"
	if s.command == Run {
		usage += "; with --interactive at a terminal a year, if nothing else is said" // see AtTerminal
	}
	l.duration(&s.Timeout, "timeout", run.DefaultTimeout, time.Millisecond, year, usage)
	l.duration(&s.Grace, "grace", run.DefaultGrace, 0, year,
		"how long before that the guest is asked to stop; at most half of --timeout, 0 for never")
	l.duration(&s.Poll, "poll", monitor.DefaultPoll, minPoll, maxPoll, "how often the ring is read")
	l.text(&s.Report, "report", "", "file for the report, - for stdout")
	l.words(&s.ReportFormat, "report-format", "text", "text", "json", "junit")
	l.text(&s.Ring, "ring", "", "file for the ring as it is at the end, for inspect")
	l.text(&s.MetricsListen, "metrics-listen", "", "address to serve Prometheus metrics on, such as 127.0.0.1:0")
	l.duration(&s.MetricsLinger, "metrics-linger", 0, 0, year, "how long to serve them after the run")
	l.text(&s.MetricsTextfile, "metrics-textfile", "",
		"FILE.prom for node_exporter's textfile collector, to which the run's metrics are added")
	l.text(&s.MetricsPush, "metrics-push", "",
		"the URL of a Pushgateway, which gets the run's metrics when it is over").check = s.checkPush
	l.text(&s.Exporter, "exporter", ExporterAuto,
		"the socket of ktstr-vmm exporter; auto is where it is by default; none").check = s.checkExporter
	l.text(&s.Control, "control", ControlAuto, "the socket for ktstr-vmm ctl; auto is where ps and ctl look for it; none").
		check = s.checkControl
	l.text(&s.Suite, "suite", "", "what metrics of the run, summed over many, have as the label suite")
	l.text(&s.Name, "name", "", "what ps and reports call the run; the command, or demo, if nothing is said")
	l.flag(&s.Quiet, "quiet", "", "show nothing but the command's output and what went wrong")
	l.words(&s.LogLevel, "log-level", "info", "debug", "info", "warn", "error")
	l.words(&s.LogFormat, "log-format", "console", "console", "json")
}

// words lists a setting that its words explain.
func (l *lister) words(at *string, key, value string, words ...string) {
	l.word(at, key, value, words, strings.Join(words, ", "))
}
