package page

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"syscall"
)

// ErrReport means that a file is no report of a run or of a suite.
var ErrReport = errors.New("no report of a run or of a suite")

// What is read of files that a guest has had a say in.
const (
	maxSource   = 64 << 20 // bytes of a run's report
	maxElements = 1 << 16  // of each of its lists: what a run keeps of stimuli, which there are most of
	maxKeys     = 1 << 10  // of each of its objects whose keys are not known
	schema      = 1
)

// source is what a page takes from the JSON report of a run. Older ones have less, later ones more.
type source struct {
	Schema        int      `json:"schema"`
	ID            string   `json:"id"`
	Name          string   `json:"name"`
	Version       string   `json:"version"`
	Arch          string   `json:"arch"`
	Accelerator   string   `json:"accelerator"`
	StartedAt     string   `json:"started_at"`
	Duration      float64  `json:"duration_seconds"`
	Outcome       string   `json:"outcome"`
	Reason        string   `json:"reason"`
	ExitCode      int      `json:"exit_code"`
	GuestExitCode *int64   `json:"guest_exit_code"`
	VM            machine  `json:"vm"`
	Ring          ring     `json:"ring"`
	Doorbell      doorbell `json:"doorbell"`
	SchedulerExit *struct {
		Code *int64 `json:"code"`
	} `json:"scheduler_exit"`
	Crash *struct {
		Message string `json:"message"`
	} `json:"crash"`
	Scheduler    *scheduler            `json:"scheduler"`
	DumpRequests list[dumpRequest]     `json:"dump_requests"`
	CPUs         *processors           `json:"cpus"`
	Phases       list[phase]           `json:"phases"`
	Stimuli      list[stimulus]        `json:"stimuli"`
	Results      list[json.RawMessage] `json:"results"`
	ResultTimes  list[float64]         `json:"result_seconds"`
	Events       list[event]           `json:"events"`
	ConsoleTail  string                `json:"console_tail"`
	ConsoleTimes list[consoleTime]     `json:"console_times"`
	Output       *output               `json:"output"`
	Host         *host                 `json:"host"`
	Invocation   *invocation           `json:"invocation"`
	Omitted      dict[json.Number]     `json:"omitted"`
}

type machine struct {
	Kernel   string `json:"kernel"`
	CPUs     int    `json:"cpus"`
	Topology struct {
		Sockets int `json:"sockets"`
		Dies    int `json:"dies"`
		Cores   int `json:"cores"`
		Threads int `json:"threads"`
		LLC     struct {
			Count int `json:"count"`
		} `json:"llc"`
		NUMA *struct {
			Nodes int `json:"nodes"`
		} `json:"numa"`
	} `json:"topology"`
	Pinning list[int] `json:"pinning"`
	Memory  uint64    `json:"memory_bytes"`
	ShmBase string    `json:"shm_base"`
	ShmSize uint64    `json:"shm_size"`
}

type ring struct {
	Messages  uint64       `json:"messages"`
	Bytes     uint64       `json:"bytes"`
	ByType    dict[uint64] `json:"by_type"`
	Drops     uint64       `json:"drops"`
	CRCErrors uint64       `json:"crc_errors"`
	Lost      uint64       `json:"lost_bytes"`
	Faults    list[fault]  `json:"faults"`
}

type fault struct {
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
}

type doorbell struct {
	Rings  uint64 `json:"rings"`
	Drains uint64 `json:"drains"`
}

type scheduler struct {
	States     list[state] `json:"states"`
	OutputTail string      `json:"output_tail"`
	Dump       string      `json:"dump"`
}

type state struct {
	At     float64 `json:"at_seconds"`
	State  string  `json:"state"`
	Ops    string  `json:"ops"`
	Reason string  `json:"reason"`
}

type dumpRequest struct {
	At  float64 `json:"at_seconds"`
	Why string  `json:"why"`
}

type processors struct {
	Looks few[look] `json:"looks"`
	Error string    `json:"error"`
}

type look struct {
	When string   `json:"when"`
	At   float64  `json:"at_seconds"`
	CPUs few[cpu] `json:"cpus"`
}

type cpu struct {
	Index     int     `json:"index"`
	Online    bool    `json:"online"`
	Idle      bool    `json:"idle"`
	NrRunning uint32  `json:"nr_running"`
	Clock     float64 `json:"clock_seconds"`
	PID       int64   `json:"pid"`
	Comm      string  `json:"comm"`
	Policy    string  `json:"policy"`
	SCX       *struct {
		Flags     string `json:"flags"`
		NrRunning uint32 `json:"nr_running"`
	} `json:"scx"`
}

type phase struct {
	Name string  `json:"name"`
	At   float64 `json:"at_seconds"`
}

type stimulus struct {
	At              *float64 `json:"at_seconds"`
	ElapsedMS       uint32   `json:"elapsed_ms"`
	StepIndex       uint32   `json:"step_index"`
	OpCount         uint32   `json:"op_count"`
	OpKinds         uint32   `json:"op_kinds"`
	CgroupCount     uint32   `json:"cgroup_count"`
	WorkerCount     uint32   `json:"worker_count"`
	TotalIterations uint64   `json:"total_iterations"`
}

type event struct {
	At   float64 `json:"at_seconds"`
	Kind string  `json:"kind"`
	Text string  `json:"text"`
}

type consoleTime struct {
	Line int     `json:"line"`
	At   float64 `json:"at_seconds"`
}

type output struct {
	Stdout      string `json:"stdout_tail"`
	StdoutBytes uint64 `json:"stdout_bytes"`
	Stderr      string `json:"stderr_tail"`
	StderrBytes uint64 `json:"stderr_bytes"`
}

type host struct {
	Name   string `json:"name"`
	OS     string `json:"os"`
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Memory uint64 `json:"memory_bytes"`
}

type invocation struct {
	Args list[string] `json:"args"`
	Dir  string       `json:"dir"`
	Env  dict[string] `json:"env"`
}

// list is a list of which so many elements are kept, and the others counted.
type list[T any] struct {
	All  []T
	More int
}

// UnmarshalJSON decodes a list, or null.
func (l *list[T]) UnmarshalJSON(text []byte) error { return l.decode(text, maxElements) }

// few is a list of which no more elements are kept than a table shows. Lists in lists are few: a list of lists that
// have an element for every three bytes would take much more memory than its text.
type few[T any] struct{ list[T] }

// UnmarshalJSON decodes a list, or null.
func (l *few[T]) UnmarshalJSON(text []byte) error { return l.decode(text, maxRows) }

func (l *list[T]) decode(text []byte, most int) error {
	*l = list[T]{}
	if string(text) == "null" {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('[') {
		return errors.Join(err, fmt.Errorf("%v, where a list is expected", t))
	}
	for d.More() {
		var x T
		if len(l.All) == most {
			var rest json.RawMessage
			if err := d.Decode(&rest); err != nil {
				return err
			}
			l.More++
			continue
		}
		if err := d.Decode(&x); err != nil {
			return err
		}
		l.All = append(l.All, x)
	}
	return nil
}

// dict is an object of which so many keys are kept.
type dict[T any] map[string]T

// UnmarshalJSON decodes an object, or null.
func (m *dict[T]) UnmarshalJSON(text []byte) error {
	*m = dict[T]{}
	if string(text) == "null" {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.Join(err, fmt.Errorf("%v, where an object is expected", t))
	}
	for d.More() && len(*m) < maxKeys {
		key, err := d.Token()
		if err != nil {
			return err
		}
		var x T
		if err := d.Decode(&x); err != nil {
			return err
		}
		(*m)[key.(string)] = x // JSON has no other keys
	}
	return nil
}

// opener opens files: of the file system, or of a folder alone.
type opener interface {
	OpenFile(name string, flag int, perm os.FileMode) (*os.File, error)
}

// anywhere opens files of the whole file system, for names that the user gave.
type anywhere struct{}

func (anywhere) OpenFile(name string, flag int, perm os.FileMode) (*os.File, error) {
	return os.OpenFile(name, flag, perm)
}

// openPlain opens a plain file. Anything else might never be read to its end.
func openPlain(o opener, name string) (*os.File, int64, error) {
	f, err := o.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%w: it is no plain file", ErrReport)
	}
	if err != nil {
		_ = f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// readSource reads the report of a run.
func readSource(o opener, name string) (*source, error) {
	f, size, err := openPlain(o, name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if size > maxSource {
		return nil, fmt.Errorf("%w: it has %d bytes, and a run's report may have %d", ErrReport, size, maxSource)
	}
	return decodeSource(io.LimitReader(f, maxSource))
}

func decodeSource(r io.Reader) (*source, error) {
	s := &source{}
	if err := json.NewDecoder(r).Decode(s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReport, err)
	}
	if s.Schema != schema || s.Outcome == "" {
		return nil, fmt.Errorf("%w: schema %d and outcome %q, want schema %d and an outcome", ErrReport, s.Schema,
			s.Outcome, schema)
	}
	return s, nil
}

// isSuite reports whether a file is the report of a suite, by the first key that only one of both has.
func isSuite(name string) (bool, error) {
	f, _, err := openPlain(anywhere{}, name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	d := json.NewDecoder(io.LimitReader(f, maxSource))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return false, fmt.Errorf("%w: it is no JSON object", ErrReport)
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return false, fmt.Errorf("%w: %w", ErrReport, err)
		}
		switch key {
		case "id", "outcome":
			return false, nil
		case "counts", "names", "runs":
			return true, nil
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return false, fmt.Errorf("%w: %w", ErrReport, err)
		}
	}
	return false, fmt.Errorf("%w: it has neither an outcome nor runs", ErrReport)
}

// seconds is a time as a page shows it. One that a run can't have is not believed.
func seconds(s float64) string {
	if !believable(s) {
		return "?"
	}
	return fmt.Sprintf("%.3f s", s)
}

// believable reports whether a number can be a time of a run, in seconds.
func believable(s float64) bool { return s >= 0 && s <= math.MaxInt32 }
