// Package report shows a run and its result: live lines and a summary for people, JSON and JUnit for machines. Text
// from the guest is escaped as the output's format needs.
package report

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/ktstr/ktstr-vmm/internal/printable"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/topology"
)

// schema is the version of the JSON report: fields are added to it, none is renamed.
const schema = 1

// Report is the JSON report.
type Report struct {
	Schema        int                `json:"schema"`
	ID            string             `json:"id"`
	Name          string             `json:"name"` // what ran, or what its user calls it
	Suite         string             `json:"suite,omitempty"`
	Version       string             `json:"version"`
	Arch          string             `json:"arch"`
	Accelerator   string             `json:"accelerator"`
	StartedAt     string             `json:"started_at"`
	Duration      float64            `json:"duration_seconds"`
	Outcome       run.Outcome        `json:"outcome"`
	Reason        string             `json:"reason"`
	ExitCode      int                `json:"exit_code"`
	GuestExitCode *int32             `json:"guest_exit_code" jsonschema:"nullable"`
	VM            jsonVM             `json:"vm"`
	Ring          jsonRing           `json:"ring"`
	Doorbell      jsonDoorbell       `json:"doorbell"`
	Scheduler     *jsonScheduler     `json:"scheduler,omitempty"`
	DumpRequests  []jsonDumpRequest  `json:"dump_requests,omitempty"`
	SchedulerExit *jsonSchedulerExit `json:"scheduler_exit" jsonschema:"nullable"`
	Crash         *jsonCrash         `json:"crash" jsonschema:"nullable"`
	CPUs          *jsonCPUs          `json:"cpus,omitempty"`
	Phases        []jsonPhase        `json:"phases,omitempty"`
	Events        []jsonEvent        `json:"events,omitempty"`
	Stimuli       []jsonStimulus     `json:"stimuli"`
	Results       []json.RawMessage  `json:"results"`
	ResultSeconds []float64          `json:"result_seconds,omitempty"` // when each of them was read
	Output        *jsonOutput        `json:"output,omitempty"`
	ConsoleTail   string             `json:"console_tail"`
	ConsoleTimes  []jsonLineTime     `json:"console_times,omitempty"`
	Host          *jsonHost          `json:"host,omitempty"`
	Invocation    *jsonInvocation    `json:"invocation,omitempty"`
	Omitted       *jsonOmitted       `json:"omitted,omitempty"`
}

// Times of a report are seconds since started_at, of what comes from the guest when the host read it.
type jsonPhase struct {
	Name run.Phase `json:"name"`
	At   float64   `json:"at_seconds"` // when it began
}

// jsonEvent is a message that is neither STIM nor TEST, or what the host found or did.
type jsonEvent struct {
	At   float64 `json:"at_seconds"`
	Kind string  `json:"kind"`
	Text string  `json:"text"`
}

type jsonStimulus struct {
	At float64 `json:"at_seconds"`
	shm.StimulusEvent
}

// jsonOutput is the end of what the command wrote, with the bytes of all of it.
type jsonOutput struct {
	Stdout      string `json:"stdout_tail"`
	StdoutBytes uint64 `json:"stdout_bytes"`
	Stderr      string `json:"stderr_tail"`
	StderrBytes uint64 `json:"stderr_bytes"`
}

// jsonLineTime is when a line of console_tail came, counted from 0.
type jsonLineTime struct {
	Line int     `json:"line"`
	At   float64 `json:"at_seconds"`
}

type jsonHost struct {
	Name   string `json:"name"`
	OS     string `json:"os"`
	Kernel string `json:"kernel"`
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Memory uint64 `json:"memory_bytes"`
}

// jsonInvocation is how the program was called: its arguments, its folder, and the variables that it reads.
type jsonInvocation struct {
	Args []string          `json:"args"`
	Dir  string            `json:"dir"`
	Env  map[string]string `json:"env"`
}

type jsonVM struct {
	Kernel    string       `json:"kernel"`
	CPUs      int          `json:"cpus"`
	Topology  jsonTopology `json:"topology"`
	Pinning   []int        `json:"pinning" jsonschema:"nullable"` // the host CPUs of their threads, or null
	Memory    uint64       `json:"memory_bytes"`
	ShmBase   string       `json:"shm_base"`
	ShmSize   uint64       `json:"shm_size"`
	FirstExit float64      `json:"first_exit_seconds"`
}

// jsonTopology says how the processors are arranged.
type jsonTopology struct {
	Sockets int       `json:"sockets"`
	Dies    int       `json:"dies"`    // of a socket
	Cores   int       `json:"cores"`   // of a die
	Threads int       `json:"threads"` // of a core
	LLC     jsonLLC   `json:"llc"`
	NUMA    *jsonNUMA `json:"numa" jsonschema:"nullable"` // null if the guest is told of no nodes
}

// jsonLLC is about last-level caches: how many there are, and how many cores share one.
type jsonLLC struct {
	Count int `json:"count"`
	Cores int `json:"cores"`
}

type jsonNUMA struct {
	Nodes     int     `json:"nodes"`
	Distances [][]int `json:"distances"` // a row for each node
}

func newJSONTopology(t topology.Topology) jsonTopology {
	j := jsonTopology{Sockets: t.Sockets, Dies: t.Dies, Cores: t.Cores, Threads: t.Threads,
		LLC: jsonLLC{t.LLCs(), t.LLCCores}}
	if t.Nodes > 0 {
		j.NUMA = &jsonNUMA{Nodes: t.Nodes}
		for _, row := range t.Distances {
			var distances []int // bytes would be base64
			for _, d := range row {
				distances = append(distances, int(d))
			}
			j.NUMA.Distances = append(j.NUMA.Distances, distances)
		}
	}
	return j
}

type jsonRing struct {
	Messages  uint64            `json:"messages"`
	Bytes     uint64            `json:"bytes"`
	ByType    map[string]uint64 `json:"by_type"`
	Drops     uint64            `json:"drops"`
	CRCErrors uint64            `json:"crc_errors"`
	Lost      uint64            `json:"lost_bytes"`
	Faults    []jsonFault       `json:"faults"`
}

// jsonDoorbell says how often the guest rang, and how often the ring was drained for it.
type jsonDoorbell struct {
	Rings  uint64 `json:"rings"`
	Drains uint64 `json:"drains"`
}

type jsonFault struct {
	Kind   string `json:"kind"`
	Detail string `json:"detail"`
}

type jsonSchedulerExit struct {
	Code *int32 `json:"code" jsonschema:"nullable"`
}

type jsonCrash struct {
	Message string `json:"message"`
}

// jsonOmitted counts what the report has no room for; it is there where any is not 0.
type jsonOmitted struct {
	Faults       uint64 `json:"faults"`
	Stimuli      uint64 `json:"stimuli"`
	Results      uint64 `json:"results"`
	CrashBytes   uint64 `json:"crash_bytes"`
	ConsoleBytes uint64 `json:"console_bytes"`
	OutputBytes  uint64 `json:"output_bytes"`
	DumpRequests uint64 `json:"dump_requests,omitempty"`
	Events       uint64 `json:"events,omitempty"`
}

// JSON writes the result as one JSON object.
func JSON(w io.Writer, version string, r *run.Result) error {
	j := Report{
		Schema:        schema,
		ID:            r.ID,
		Name:          r.Name,
		Suite:         r.Suite,
		Version:       version,
		Arch:          r.Arch,
		Accelerator:   r.Accelerator,
		StartedAt:     r.StartedAt.Format(time.RFC3339Nano),
		Duration:      r.Duration.Seconds(),
		Outcome:       r.Outcome,
		Reason:        r.Reason,
		ExitCode:      r.ExitCode,
		GuestExitCode: r.GuestExitCode,
		VM: jsonVM{
			Kernel:    r.Kernel,
			CPUs:      r.Topology.CPUs(),
			Topology:  newJSONTopology(r.Topology),
			Pinning:   r.Pin,
			Memory:    r.Memory,
			ShmBase:   r.RingBase.String(),
			ShmSize:   r.RingSize,
			FirstExit: r.FirstExit.Seconds(),
		},
		Ring: jsonRing{
			Messages:  r.Ring.Messages,
			Bytes:     r.Ring.Bytes,
			ByType:    map[string]uint64{},
			Drops:     r.Ring.Drops,
			CRCErrors: r.Ring.CRCErrors,
			Lost:      r.Ring.Lost,
			Faults:    []jsonFault{},
		},
		Doorbell:    jsonDoorbell{r.Rings, r.Ring.BellDrains},
		Stimuli:     []jsonStimulus{},
		Results:     []json.RawMessage{},
		Scheduler:   schedulerOf(r),
		ConsoleTail: string(r.Console),
	}
	j.CPUs = cpusJSON(r)
	j.addHistory(r)
	for name, n := range r.Ring.ByType {
		if n > 0 {
			j.Ring.ByType[name] = n
		}
	}
	for _, f := range r.Faults {
		j.Ring.Faults = append(j.Ring.Faults, jsonFault(f))
	}
	for _, d := range r.DumpRequests {
		j.DumpRequests = append(j.DumpRequests, jsonDumpRequest{d.At.Seconds(), d.Why})
	}
	if r.SchedulerExit != nil {
		j.SchedulerExit = &jsonSchedulerExit{r.SchedulerExit.Code}
	}
	if r.Crash != nil {
		j.Crash = &jsonCrash{*r.Crash}
	}
	for _, result := range r.TestResults {
		j.Results = append(j.Results, testResult(result.Payload))
		j.ResultSeconds = append(j.ResultSeconds, result.At.Seconds())
	}
	if r.Omitted != (run.Omitted{}) {
		j.Omitted = &jsonOmitted{r.Omitted.Faults, r.Omitted.Stimuli, r.Omitted.TestResults, r.Omitted.CrashBytes,
			r.Omitted.ConsoleBytes, r.Omitted.OutputBytes, r.Omitted.DumpRequests, r.Omitted.Events}
	}
	return j.encode(w)
}

// encode writes the report. json.Indent puts two blanks for each level in front of each of a result's values, which
// makes gigabytes of a few nested brackets: results are written here, and those for which that is much in one line.
func (j Report) encode(w io.Writer) error {
	results := j.Results
	j.Results = []json.RawMessage{}
	var b bytes.Buffer
	if err := EncodeJSON(&b, j); err != nil {
		return err
	}
	const key = "\n  \"results\": ["
	before, behind, found := bytes.Cut(b.Bytes(), []byte(key)) // texts in it have no such line
	if !found || len(results) == 0 {
		_, err := w.Write(b.Bytes())
		return err
	}
	out := bufio.NewWriter(w) // which keeps its first error
	_, _ = out.Write(before)
	_, _ = out.WriteString(key)
	for i, result := range results {
		if i > 0 {
			_ = out.WriteByte(',')
		}
		_, _ = out.WriteString("\n    ")
		_, _ = out.Write(PrintableJSON(indented(result)))
	}
	_, _ = out.WriteString("\n  ")
	_, _ = out.Write(behind)
	return out.Flush()
}

// Bounds of a result that is more than a line in a report, in bytes.
const (
	maxIndents  = 1 << 10 // as it is
	maxIndented = 4 << 10 // as it is then
)

// indented is a result as it is in a report.
func indented(result json.RawMessage) []byte {
	var b bytes.Buffer
	if len(result) <= maxIndents && json.Indent(&b, result, "    ", "  ") == nil && b.Len() <= maxIndented {
		return b.Bytes()
	}
	b.Reset()
	if json.Compact(&b, result) != nil { // which it is not: testResult has seen to that
		return []byte("null")
	}
	return b.Bytes()
}

// addHistory adds what happened when, and where.
func (j *Report) addHistory(r *run.Result) {
	for _, p := range r.Phases {
		j.Phases = append(j.Phases, jsonPhase{p.Phase, p.At.Seconds()})
	}
	for _, e := range r.Events {
		j.Events = append(j.Events, jsonEvent{e.At.Seconds(), e.Kind, e.Text})
	}
	for _, s := range r.Stimuli {
		j.Stimuli = append(j.Stimuli, jsonStimulus{s.At.Seconds(), s.StimulusEvent})
	}
	for _, t := range r.ConsoleTimes {
		j.ConsoleTimes = append(j.ConsoleTimes, jsonLineTime{t.Line, t.At.Seconds()})
	}
	if r.Stdout.Bytes+r.Stderr.Bytes > 0 {
		j.Output = &jsonOutput{string(r.Stdout.Tail), r.Stdout.Bytes, string(r.Stderr.Tail), r.Stderr.Bytes}
	}
	if r.Host != (run.Host{}) {
		host := jsonHost(r.Host)
		j.Host = &host
	}
	if len(r.Invocation.Args) > 0 {
		j.Invocation = &jsonInvocation{r.Invocation.Args, r.Invocation.Dir, map[string]string{}}
		for _, e := range r.Invocation.Env {
			name, value, _ := strings.Cut(e, "=")
			j.Invocation.Env[name] = value
		}
	}
}

// EncodeJSON writes a value as JSON that people can read, too, also on a terminal.
func EncodeJSON(w io.Writer, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err
	}
	_, err := w.Write(PrintableJSON(b.Bytes()))
	return err
}

// PrintableJSON returns the same JSON without characters that a terminal would act on, or that are not shown where they
// are. Only strings have such characters, and there each has an escape; encoding/json makes use of those up to U+001F
// alone.
func PrintableJSON(text []byte) []byte {
	return printable.Escape(text, func(out []byte, c rune) []byte {
		if c > 0xffff {
			high, low := utf16.EncodeRune(c)
			return fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		}
		return fmt.Appendf(out, `\u%04x`, c)
	})
}

// maxNesting is how deep a result is nested at most. Readers of JSON have limits, and one that meets a deeper result
// takes nothing of the report: Python's stops before 1000 levels, some versions of jq at 256.
const maxNesting = 64

// testResult is a TEST payload as it is where it is JSON that all can read, else {"base64": …}. JSON is UTF-8 (RFC
// 8259, 8.1), which json.Valid does not look at.
func testResult(payload []byte) json.RawMessage {
	if utf8.Valid(payload) && json.Valid(payload) && nesting(payload) <= maxNesting {
		return payload
	}
	// strings always marshal
	text, _ := json.Marshal(map[string]string{"base64": base64.StdEncoding.EncodeToString(payload)})
	return text
}

// nesting is how many lists and objects of a JSON text are in each other.
func nesting(text []byte) (deepest int) {
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '[', c == '{':
			depth++
			deepest = max(deepest, depth)
		case c == ']', c == '}':
			depth--
		}
	}
	return deepest
}
