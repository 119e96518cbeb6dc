package agentproto

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Where the agent finds its job, and the kernel modules that it is to load.
const (
	JobPath    = "/ktstr/job"
	ModulesDir = "/ktstr/modules"
)

// ErrJob means that a text is not a job.
var ErrJob = errors.New("this is no job for the agent")

// Job is what the host wants a guest to do. Encoded it is text, an item a line: a name, a blank, and a value quoted as
// in Go, so that it can contain every byte.
//
//	arg "/bin/echo"
//	arg "two\nlines"
//	env "HOME=/root"
//	dir "/src"
//	tty "true"
//
// Items of the same name form a list, in their order. The format is simple to keep the agent small: a guest's kernel
// unpacks it at every boot.
type Job struct {
	Args []string // the command; its program is a path in the guest
	Env  []string // NAME=VALUE
	Dir  string   // the command's working directory; made if it is missing
	TTY  bool     // the command gets a controlling terminal
	// Window is the size of its window; 0: 24 rows of 80 columns.
	Window Window

	// Stdin makes the command's stdin what the host answers to calls; else there is none.
	Stdin bool
	// Prompt makes the guest tell the host that the command has failed, and wait for its leave to end.
	Prompt bool

	// OneOutput makes the command's stdout and stderr one, so that their order is kept.
	OneOutput bool

	// Modules are loaded into the kernel, in this order, before anything is started.
	Modules []Module

	// Scheduler is the scheduler under test and its arguments; empty: the kernel's own.
	Scheduler []string
	// SchedulerWait is how long the scheduler may take until it is in charge; 0: the agent decides.
	SchedulerWait time.Duration

	// OpenFiles is how many files a process may have open; if Hard is 0, the guest's kernel decides.
	OpenFiles Limit
}

// Module is a kernel module: a file in the guest, whose path has no blank, and its parameters, as finit_module(2) takes
// them.
type Module struct{ Path, Params string }

// Window is the size of a terminal's window, in characters.
type Window struct{ Rows, Cols uint16 }

// Limit is a limit of setrlimit(2).
type Limit struct{ Soft, Hard uint64 }

// The names of a job's items.
const (
	nameArg       = "arg"
	nameEnv       = "env"
	nameDir       = "dir"
	nameTTY       = "tty"
	nameWindow    = "window"
	nameStdin     = "stdin"
	namePrompt    = "prompt"
	nameOneOutput = "one-output"
	nameModule    = "module"
	nameScheduler = "scheduler"
	nameWait      = "scheduler-wait"
	nameOpenFiles = "open-files"
)

// Encode returns the job as JobPath holds it.
func (j Job) Encode() string {
	var b strings.Builder
	item := func(name string, values ...string) {
		for _, v := range values {
			fmt.Fprintf(&b, "%s %q\n", name, v)
		}
	}
	item(nameArg, j.Args...)
	item(nameEnv, j.Env...)
	item(nameDir, j.Dir)
	item(nameTTY, strconv.FormatBool(j.TTY))
	item(nameWindow, fmt.Sprint(j.Window.Rows, " ", j.Window.Cols))
	item(nameStdin, strconv.FormatBool(j.Stdin))
	item(namePrompt, strconv.FormatBool(j.Prompt))
	item(nameOneOutput, strconv.FormatBool(j.OneOutput))
	for _, m := range j.Modules {
		item(nameModule, m.Path+" "+m.Params)
	}
	item(nameScheduler, j.Scheduler...)
	item(nameWait, j.SchedulerWait.String())
	item(nameOpenFiles, fmt.Sprint(j.OpenFiles.Soft, " ", j.OpenFiles.Hard))
	return b.String()
}

// ParseJob parses what Encode has written. It fails with ErrJob, also if there is no command.
func ParseJob(text string) (Job, error) {
	var j Job
	for line := range strings.Lines(text) {
		name, quoted, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		value, err := strconv.Unquote(quoted)
		if err == nil {
			err = j.set(name, value)
		}
		if err != nil {
			return Job{}, fmt.Errorf("%w: the line %.100q: %w", ErrJob, line, err)
		}
	}
	if len(j.Args) == 0 {
		return Job{}, fmt.Errorf("%w: it has no command", ErrJob)
	}
	return j, nil
}

func (j *Job) set(name, value string) (err error) {
	switch name {
	case nameArg:
		j.Args = append(j.Args, value)
	case nameEnv:
		j.Env = append(j.Env, value)
	case nameDir:
		j.Dir = value
	case nameTTY:
		j.TTY, err = strconv.ParseBool(value)
	case nameWindow:
		j.Window, err = parseWindow(value)
	case nameStdin:
		j.Stdin, err = strconv.ParseBool(value)
	case namePrompt:
		j.Prompt, err = strconv.ParseBool(value)
	case nameOneOutput:
		j.OneOutput, err = strconv.ParseBool(value)
	case nameModule:
		path, params, _ := strings.Cut(value, " ")
		j.Modules = append(j.Modules, Module{path, params})
	case nameScheduler:
		j.Scheduler = append(j.Scheduler, value)
	case nameWait:
		j.SchedulerWait, err = time.ParseDuration(value)
	case nameOpenFiles:
		j.OpenFiles, err = parseLimit(value)
	default:
		return fmt.Errorf("%q is no item of a job", name)
	}
	return err
}

func parseWindow(value string) (w Window, err error) {
	rows, cols, _ := strings.Cut(value, " ")
	r, err := strconv.ParseUint(rows, 10, 16)
	if err != nil {
		return Window{}, err
	}
	c, err := strconv.ParseUint(cols, 10, 16)
	return Window{uint16(r), uint16(c)}, err
}

func parseLimit(value string) (l Limit, err error) {
	soft, hard, _ := strings.Cut(value, " ")
	if l.Soft, err = strconv.ParseUint(soft, 10, 64); err != nil {
		return Limit{}, err
	}
	if l.Hard, err = strconv.ParseUint(hard, 10, 64); err != nil {
		return Limit{}, err
	}
	return l, nil
}
