// Package config has the settings of a run in one list. Flags, the keys of config files, environment variables and the
// schema of config files are all made from it.
package config

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// Command is what takes a setting: Run, Demo or both.
type Command uint8

// The commands that run a guest.
const (
	Run  Command = 1 << iota // a Linux kernel and a command
	Demo                     // the embedded guest
)

// Settings are what a command that runs a guest is told. The zero value is of no use; New makes one.
type Settings struct {
	// Of every guest.
	Memory, ShmSize     Size // bytes
	CPUs                string
	LLC, NUMA, Pin      string
	Accel               string
	Timeout, Grace      time.Duration
	Poll                time.Duration
	Report              string
	ReportFormat        string
	Ring                string
	MetricsListen       string
	MetricsLinger       time.Duration
	MetricsTextfile     string
	MetricsPush         string
	Exporter            string // ExporterAuto, ExporterNone or a socket's path
	Control             string // ControlAuto, ControlNone or a socket's path
	Suite               string
	Name                string
	Quiet               bool
	LogLevel, LogFormat string

	// Of Run.
	Kernel, Initrd, Sysroot string
	Modules, Include, Env   []string
	Append, CmdlineOnly     string
	Scheduler               string
	SchedulerWait           time.Duration
	DumpOn                  []string
	StallPolls              int
	StallRate               float64
	ShmReserve              string
	TTY, Interactive        bool
	ShellOnFailure, Verbose bool
	Console                 string
	ConsoleLimit            Size     // bytes
	Command                 []string // the program and its arguments; no flag's

	// Of Demo.
	Scenario, Arch string

	// What Check has made of some of them.
	Topology topology.Topology
	Pinned   []int // host CPUs
	Dumps    run.Dumps

	command Command
	list    []*Setting
}

// Setting is one of the Settings.
type Setting struct {
	*pflag.Flag // Name is the key; Value parses and holds the value

	// Words are what the value, or each of a list's, can be; nil for other kinds.
	Words []string
	// Source is how who gave the value calls the setting, for errors: its key, "--memory", "run.yaml:3: memory".
	Source string
	// NoFlag is set for what is no flag: the command, which is behind "--".
	NoFlag bool

	check func() error // of the value by itself, once it is parsed; nil if all are right
}

// New returns the defaults of the settings that a command takes.
func New(c Command) *Settings {
	s := &Settings{command: c}
	l := lister{s: s, flags: pflag.NewFlagSet("", pflag.ContinueOnError)}
	if c == Demo {
		l.demo()
	} else {
		l.run()
	}
	l.both()
	return s
}

// AtTerminal says that a person at a terminal talks to the guest's command. Unless a deadline was given, it is the
// latest that there can be.
func (s *Settings) AtTerminal() {
	if !s.Lookup("timeout").Changed {
		s.Timeout = year
	}
}

// All returns the settings in the order in which help shows them.
func (s *Settings) All() []*Setting { return s.list }

// Lookup returns the setting of a key, or nil.
func (s *Settings) Lookup(key string) *Setting {
	i := slices.IndexFunc(s.list, func(x *Setting) bool { return x.Name == key })
	if i < 0 {
		return nil
	}
	return s.list[i]
}

// Set parses and checks a value's texts, of which only a list has more or less than one, in the place of an earlier
// value. An error names the setting.
func (x *Setting) Set(source string, texts ...string) error {
	x.Source = source
	if list, ok := x.Value.(pflag.SliceValue); ok {
		if err := list.Replace(nil); err != nil { // Set would add to what an earlier source said
			return x.wrap(err)
		}
	}
	for _, text := range texts {
		if err := x.Value.Set(text); err != nil {
			return &Error{Given: []Given{{source, strconv.Quote(text)}}, Err: plain(err)}
		}
	}
	x.Changed = true
	if x.check != nil {
		return x.wrap(x.check())
	}
	return nil
}

// wrap names the setting in an error.
func (x *Setting) wrap(err error) error {
	if err == nil {
		return nil
	}
	return &Error{Given: []Given{x.given()}, Err: err}
}

func (x *Setting) given() Given {
	text := x.Value.String()
	if list, ok := x.Value.(pflag.SliceValue); ok {
		text = strings.Join(list.GetSlice(), ",")
	}
	shown := strconv.Quote(text)
	if x.Words != nil && !x.List() || len(shown) != len(text)+2 || text == "" || strings.Contains(text, " ") {
		text = shown
	}
	return Given{x.Source, text}
}

// List reports whether the setting has any number of values.
func (x *Setting) List() bool {
	_, ok := x.Value.(pflag.SliceValue)
	return ok
}
