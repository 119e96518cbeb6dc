// Package suite does many runs for one verdict. What they are is in a YAML file, with matrices; each is a process of
// its own; what became of them is one report, those of several shards can be made one, and two can be compared.
package suite

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// Suite is what a suite's file describes.
type Suite struct {
	Name string
	Runs []*Run // in the file's order, those of a matrix in the order of its values
}

// Run is one guest of a suite.
type Run struct {
	Name    string // no other run of the suite has it
	Labels  []string
	Command config.Command
	Expect  Expect

	// What the run takes of the host, and for how long at most.
	CPUs           int
	Memory         uint64 // bytes
	Timeout, Grace time.Duration

	args []string // what the file says, as Args returns it
}

// Args returns the arguments of the program that do the run: the command's name, more flags, a flag for each setting
// that the file has, and what runs in the guest behind "--". What the file leaves unsaid is left to the environment.
func (x *Run) Args(more ...string) []string {
	return slices.Concat([]string{x.Command.String()}, more, x.args)
}

// Expect is how a run has to end to pass.
type Expect struct {
	Outcome  run.Outcome `json:"outcome"`
	ExitCode *int        `json:"exit_code,omitempty"` // of the run; nil: any
}

// maxRuns bounds a matrix.
const maxRuns = 10000

// MaxRetries is how many more attempts a run has at most.
const MaxRetries = 100

// own are the settings that a suite makes for each run.
var own = []string{"report", "report-format", "console", "ring", "metrics-listen", "metrics-linger", "metrics-textfile",
	"metrics-push", "exporter", "control", "suite", "name"}

// Keys of a suite's file, and of a run in it beside the settings.
var (
	suiteKeys = []string{"name", "defaults", "runs"}
	runKeys   = []string{"name", "labels", "expect", "matrix"}
)

// Open reads a suite's file. Environ has "NAME=VALUE" strings with settings that the file leaves unsaid. An error names
// the file, the line and the key.
func Open(name string, environ []string) (*Suite, error) {
	d, err := config.Open(name)
	if err != nil {
		return nil, err
	}
	return read(d, environ)
}

// reader reads a document.
type reader struct {
	*config.Document
	environ  []string
	defaults *yaml.Node // nil if there are none
	known    []string   // settings' keys
	suite    *Suite
	names    map[string]bool // of its runs
}

func read(d *config.Document, environ []string) (*Suite, error) {
	r := &reader{Document: d, environ: environ, known: settingKeys(), suite: &Suite{}, names: map[string]bool{}}
	if d.Root == nil {
		return nil, fmt.Errorf("%w: %s is empty; it has name and runs", config.ErrFile, d.Name)
	}
	var runs *yaml.Node
	for key, value := range config.Pairs(d.Root) {
		var err error
		switch key.Value {
		case "name":
			r.suite.Name, err = r.word(key, value)
		case "defaults":
			r.defaults, err = value, r.checkDefaults(value)
		case "runs":
			runs = value
		default:
			err = r.unknown(key, suiteKeys)
		}
		if err != nil {
			return nil, err
		}
	}
	switch {
	case r.suite.Name == "":
		return nil, r.Errorf(d.Root, "name is missing: what the suite is called")
	case runs == nil || runs.Kind != yaml.SequenceNode || len(runs.Content) == 0:
		return nil, r.Errorf(cmp.Or(runs, d.Root), "runs is missing: a list of what to run, as in runs: [{scenario: ok}]")
	}
	for _, n := range runs.Content {
		if err := r.entry(n); err != nil {
			return nil, err
		}
	}
	return r.suite, nil
}

// word is a value that is a name: one line that is not empty.
func (r *reader) word(key, value *yaml.Node) (string, error) {
	texts, list, err := r.Texts(value)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s: %w", key.Value, err)
	case list || strings.TrimSpace(texts[0]) == "" || strings.ContainsAny(texts[0], "\n\r\x00"):
		return "", r.Errorf(value, "%s %q: it is one line of text", key.Value, strings.Join(texts, ","))
	}
	return texts[0], nil
}

// unknown says that a key is none of these.
func (r *reader) unknown(key *yaml.Node, known []string) error {
	return r.Errorf(key, "%q is no key here%s", key.Value, config.DidYouMean(key.Value, known))
}

// settingKeys are the keys of both commands' settings that a suite's file can have.
func settingKeys() (keys []string) {
	for _, c := range []config.Command{config.Run, config.Demo} {
		for _, x := range config.New(c).All() {
			if !slices.Contains(own, x.Name) && !slices.Contains(keys, x.Name) {
				keys = append(keys, x.Name)
			}
		}
	}
	return keys
}

func (r *reader) checkDefaults(n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return r.Errorf(n, "defaults: keys and values are expected, as in defaults: {memory: 512M}")
	}
	for key := range config.Pairs(n) {
		if err := r.checkSetting(key); err != nil {
			return err
		}
	}
	return nil
}

func (r *reader) checkSetting(key *yaml.Node) error {
	switch {
	case slices.Contains(own, key.Value):
		return r.Errorf(key, "%s is the suite's to set, for each run", key.Value)
	case !slices.Contains(r.known, key.Value):
		return r.unknown(key, slices.Concat(r.known, runKeys))
	}
	return nil
}

// pair is a key with its value.
type pair struct{ key, value *yaml.Node }

// entry is an item of runs as the file has it.
type entry struct {
	name     string
	labels   []string
	expect   Expect
	settings []pair
	axes     [][]pair // of the matrix: for each key its values
}

// entry adds the runs that an item describes.
func (r *reader) entry(n *yaml.Node) error {
	if n.Kind != yaml.MappingNode {
		return r.Errorf(n, "a run is keys and values, as in {name: first, scenario: ok}")
	}
	e := entry{expect: Expect{Outcome: run.Exited}}
	for key, value := range config.Pairs(n) {
		var err error
		switch key.Value {
		case "name":
			e.name, err = r.word(key, value)
		case "labels":
			if e.labels, _, err = r.Texts(value); err != nil {
				err = fmt.Errorf("labels: %w", err)
			}
		case "expect":
			e.expect, err = r.expect(value)
		case "matrix":
			e.axes, err = r.matrix(value)
		default:
			err = r.checkSetting(key)
			e.settings = append(e.settings, pair{key, value})
		}
		if err != nil {
			return err
		}
	}
	if e.expect.ExitCode == nil && e.expect.Outcome == run.Exited {
		e.expect.ExitCode = new(int)
	}
	return r.expand(n, &e, nil)
}

// expect reads how runs are to end.
func (r *reader) expect(n *yaml.Node) (Expect, error) {
	e := Expect{Outcome: run.Exited}
	if n.Kind != yaml.MappingNode {
		return e, r.Errorf(n, "expect: keys and values are expected, as in expect: {outcome: timeout}")
	}
	for key, value := range config.Pairs(n) {
		text, err := r.word(key, value)
		switch {
		case err != nil:
			return e, err
		case key.Value == "outcome":
			e.Outcome = run.Outcome(text)
			if !slices.Contains(run.Outcomes(), e.Outcome) {
				return e, r.Errorf(value, "outcome %q: it is one of %v", text, run.Outcomes())
			}
		case key.Value == "exit-code":
			code, err := strconv.ParseUint(text, 10, 8)
			if err != nil {
				return e, r.Errorf(value, "exit-code %q: it is a number from 0 to 255", text)
			}
			e.ExitCode = new(int)
			*e.ExitCode = int(code)
		default:
			return e, r.unknown(key, []string{"outcome", "exit-code"})
		}
	}
	return e, nil
}

// matrix reads the values of each of a matrix's keys.
func (r *reader) matrix(n *yaml.Node) (axes [][]pair, err error) {
	if n.Kind != yaml.MappingNode {
		return nil, r.Errorf(n, "matrix: keys with lists of values are expected, as in matrix: {cpus: [1, 2]}")
	}
	for key, values := range config.Pairs(n) {
		if err := r.checkSetting(key); err != nil {
			return nil, err
		}
		if values.Kind != yaml.SequenceNode || len(values.Content) == 0 {
			return nil, r.Errorf(values, "matrix: %s: a list of values is expected, as in [1, 2]", key.Value)
		}
		var axis []pair
		for _, v := range values.Content {
			axis = append(axis, pair{key, v})
		}
		axes = append(axes, axis)
	}
	return axes, nil
}

// expand makes the runs of an entry, one for each combination of its matrix's values.
func (r *reader) expand(n *yaml.Node, e *entry, chosen []pair) error {
	if len(chosen) < len(e.axes) {
		for _, p := range e.axes[len(chosen)] {
			if err := r.expand(n, e, append(chosen[:len(chosen):len(chosen)], p)); err != nil {
				return err
			}
		}
		return nil
	}
	if len(r.suite.Runs) == maxRuns {
		return r.Errorf(n, "a suite has at most %d runs", maxRuns)
	}
	x := &Run{Name: e.name, Labels: e.labels, Expect: e.expect, Command: config.Run}
	given := append(slices.Clone(e.settings), chosen...)
	if slices.ContainsFunc(given, func(p pair) bool { return p.key.Value == "scenario" }) {
		x.Command = config.Demo
	}
	s, err := r.settings(x.Command, given)
	if err != nil {
		return err
	}
	x.args = arguments(s)
	if err := r.complete(s); err != nil {
		return err
	}
	if x.Command == config.Run && (s.Kernel == "" || len(s.Command) == 0) {
		return r.Errorf(n, "a run has a scenario, or a kernel and a command")
	}
	x.CPUs, x.Memory, x.Timeout, x.Grace = s.Topology.CPUs(), uint64(s.Memory), s.Timeout, s.Grace
	x.Name = cmp.Or(x.Name, s.Scenario, strings.Join(s.Command, " "))
	x.Name += variant(chosen)
	if r.names[x.Name] {
		return r.Errorf(n, "there is a run with the name %q already: give this one another", x.Name)
	}
	r.names[x.Name] = true
	r.suite.Runs = append(r.suite.Runs, x)
	return nil
}

// settings are what the file says of a run: its own, and the defaults that its command has.
func (r *reader) settings(c config.Command, given []pair) (*config.Settings, error) {
	s := config.New(c)
	if r.defaults != nil {
		for key, value := range config.Pairs(r.defaults) {
			again := slices.ContainsFunc(given, func(p pair) bool { return p.key.Value == key.Value })
			if s.Lookup(key.Value) == nil || again {
				continue
			}
			if err := s.SetNode(r.Document, key, value); err != nil {
				return nil, err
			}
		}
	}
	for _, p := range given {
		if err := s.SetNode(r.Document, p.key, p.value); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// complete adds what the environment says to a run's settings, and judges them.
func (r *reader) complete(s *config.Settings) error {
	if err := s.Load(nil, r.environ); err != nil {
		return err
	}
	return s.Check()
}

// arguments are the flags that say what settings were given, and the command behind them.
func arguments(s *config.Settings) (args []string) {
	for _, x := range s.All() {
		if !x.Changed || x.NoFlag {
			continue
		}
		texts := []string{x.Value.String()}
		if list, ok := x.Value.(pflag.SliceValue); ok {
			texts = list.GetSlice()
		}
		for _, text := range texts {
			args = append(args, "--"+x.Name+"="+text)
		}
	}
	if len(s.Command) > 0 {
		args = append(append(args, "--"), s.Command...)
	}
	return args
}

// variant is what a matrix adds to a name.
func variant(chosen []pair) string {
	if len(chosen) == 0 {
		return ""
	}
	var all []string
	for _, p := range chosen {
		var texts []string
		if p.value.Kind == yaml.SequenceNode {
			for _, item := range p.value.Content {
				texts = append(texts, item.Value)
			}
		} else {
			texts = []string{p.value.Value}
		}
		all = append(all, p.key.Value+"="+strings.Join(texts, " "))
	}
	return "[" + strings.Join(all, ",") + "]"
}

// Schema returns the JSON Schema of suites' files, for encoding/json.
func Schema() map[string]any {
	settings := config.New(config.Run).Properties()
	maps.Copy(settings, config.New(config.Demo).Properties())
	for _, key := range own {
		delete(settings, key)
	}
	axes, entry := map[string]any{}, maps.Clone(settings)
	for key, s := range settings {
		axes[key] = map[string]any{"type": "array", "items": s, "minItems": 1}
	}
	object := func(properties map[string]any) map[string]any {
		return map[string]any{"type": "object", "additionalProperties": false, "properties": properties}
	}
	entry["name"] = map[string]any{"type": "string", "description": "what the run is called; its command by default"}
	entry["labels"] = map[string]any{"type": "array", "items": map[string]any{"type": "string"},
		"description": "words by which --filter chooses runs"}
	expect := object(map[string]any{
		"outcome":   map[string]any{"enum": run.Outcomes(), "default": run.Exited},
		"exit-code": map[string]any{"type": "integer", "minimum": 0, "maximum": 255},
	})
	expect["description"] = "how the run has to end to pass; exited with code 0 by default"
	entry["expect"] = expect
	matrix := object(axes)
	matrix["description"] = "settings with lists of values: there is a run for each combination"
	entry["matrix"] = matrix
	s := object(map[string]any{
		"name":     map[string]any{"type": "string", "description": "what the suite is called"},
		"defaults": object(settings),
		"runs":     map[string]any{"type": "array", "minItems": 1, "items": object(entry)},
	})
	s["$schema"], s["title"], s["required"] = config.Draft, "A suite of ktstr-vmm", []string{"name", "runs"}
	return s
}
