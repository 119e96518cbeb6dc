package exporter

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"

	"github.com/ktstr/ktstr-vmm/pkg/tally"
)

// Limits on what is kept.
const (
	maxRuns     = 1024 // live ones
	maxEnded    = 8192 // ids, by which a run's end is not counted twice
	maxScrapers = 64
	maxState    = 256 << 20 // bytes
)

// ErrState is a state file that this exporter can't go on with.
var ErrState = errors.New("no state of an exporter")

// errRuns means that there are too many live runs.
var errRuns = fmt.Errorf("%d runs are live, and no more are taken", maxRuns)

// store is all that an exporter knows.
type store struct {
	path string

	mu       sync.Mutex
	totals   *tally.Tally // of ended runs
	live     map[string]*liveRun
	ended    map[string]bool
	order    []string // of ended, the oldest first
	births   map[string]uint64
	recent   map[string]time.Time // when those of births were born that this process has seen
	scrapers map[string]*scraper
	changes  uint64

	saving sync.Mutex
	saved  uint64 // changes that are in the file
}

// liveRun is a run that has not ended, as far as the exporter knows.
type liveRun struct {
	Labels   tally.Labels // as they are summed
	Started  time.Time
	PID      int    // 0: not known
	Birth    string // of the process: who has its number later is another one
	families []*dto.MetricFamily
	fill     float64
	conns    int
	orphaned time.Time // when it was left without a connection
}

// scraper is one that has been served.
type scraper struct {
	Seen uint64    // the youngest series that it knows
	Last time.Time // when it came

	unsure []uint64 // the youngest series in its latest answers, of which it is not known whether it has got them
	conn   string   // the connection of the latest
}

// state is the file. What it has for live runs is what scrapers may have seen: sums never get smaller.
type state struct {
	Version  int                 `json:"version"`
	Totals   []byte              `json:"totals"` // delimited protobuf
	Live     map[string]liveFile `json:"live"`
	Ended    []string            `json:"ended"`
	Births   map[string]uint64   `json:"births"`
	Scrapers map[string]*scraper `json:"scrapers"`
}

type liveFile struct {
	Run      *liveRun
	Families []byte // delimited protobuf
}

func openStore(path string, limit int) (*store, error) {
	s := &store{path: path, totals: tally.New(limit), live: map[string]*liveRun{}, ended: map[string]bool{},
		births: map[string]uint64{}, recent: map[string]time.Time{}, scrapers: map[string]*scraper{}, changes: 1}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s, s.save() // that it can't be written is known at once
	}
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxState {
		return nil, fmt.Errorf("%w: %s is no plain file of at most %d bytes", ErrState, path, maxState)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if err := s.restore(b); err != nil {
		return nil, fmt.Errorf("%w: %s: %w; to begin anew, move it away", ErrState, path, err)
	}
	return s, s.save()
}

func (s *store) restore(b []byte) error {
	var f state
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if f.Version != protocolVersion {
		return fmt.Errorf("its version is %d, and %d is known", f.Version, protocolVersion)
	}
	families, err := decodeFamilies(f.Totals, maxFamilies)
	if err == nil {
		err = s.totals.Merge(families)
	}
	if err != nil {
		return err
	}
	now := time.Now()
	for id, file := range f.Live {
		run := file.Run
		if run == nil {
			return fmt.Errorf("the run %q has nothing in it", id)
		}
		if run.families, err = decodeFamilies(file.Families, maxFamilies); err != nil {
			return err
		}
		run.Labels = s.totals.Group(run.Labels)
		run.orphaned = now
		s.live[id] = run
	}
	for _, id := range f.Ended {
		s.remember(id)
	}
	for series, n := range f.Births {
		s.births[series] = n
	}
	for name, who := range f.Scrapers {
		if who != nil {
			s.scrapers[name] = who
		}
	}
	return nil
}

// save writes the state if there is anything new in it. Many who want to save at the same time wait for one write.
func (s *store) save() error {
	s.mu.Lock()
	want := s.changes
	s.mu.Unlock()
	s.saving.Lock()
	defer s.saving.Unlock()
	if s.saved >= want {
		return nil
	}
	b, changes, err := s.marshal()
	if err == nil {
		err = replaceFile(s.path, b)
	}
	if err != nil {
		return fmt.Errorf("the exporter's state: %w", err)
	}
	s.saved = changes
	return nil
}

func (s *store) marshal() (b []byte, changes uint64, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := state{Version: protocolVersion, Ended: s.order, Births: s.births, Scrapers: s.scrapers,
		Live: map[string]liveFile{}}
	families, err := s.totals.Gather()
	if err != nil {
		return nil, 0, err
	}
	var buf bytes.Buffer
	if err := encodeFamilies(&buf, families); err != nil {
		return nil, 0, err
	}
	f.Totals = buf.Bytes()
	for id, run := range s.live {
		var buf bytes.Buffer
		if err := encodeFamilies(&buf, run.families); err != nil {
			return nil, 0, err
		}
		f.Live[id] = liveFile{run, buf.Bytes()}
	}
	b, err = json.Marshal(f)
	return b, s.changes, err
}

// replaceFile puts a file in the place of another, so that a crash leaves either whole.
func replaceFile(path string, content []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".exporter-*")
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// remember keeps the id of a run that has ended.
func (s *store) remember(id string) {
	if s.ended[id] {
		return
	}
	s.ended[id] = true
	s.order = append(s.order, id)
	if len(s.order) > maxEnded {
		delete(s.ended, s.order[0])
		s.order = s.order[1:]
	}
}

// take takes what a run says: conns is 1 with the first message of a connection. It reports whether the run has ended.
func (s *store) take(m *message, p process, conns int) (ended bool, err error) {
	own := tally.New(1)
	if err := own.Add(m.Labels, m.families); err != nil {
		return false, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended[m.ID] {
		return m.Outcome != "", nil
	}
	run := s.live[m.ID]
	if m.Outcome == "" && run == nil && len(s.live) >= maxRuns {
		return false, errRuns
	}
	s.changes++
	if run == nil {
		run = &liveRun{Labels: s.totals.Group(m.Labels), Started: m.Started}
	}
	run.PID, run.Birth, run.fill = p.pid, p.birth, ringFill(m.families)
	run.conns += conns
	if run.families, err = own.Gather(); err != nil {
		return false, err
	}
	if m.Outcome == "" {
		s.live[m.ID] = run
		return false, nil
	}
	return true, s.end(m.ID, run, m.End)
}

// end moves a run from the live ones to the totals.
func (s *store) end(id string, run *liveRun, end End) error {
	delete(s.live, id)
	s.remember(id)
	s.changes++
	return errors.Join(addRun(s.totals, run), s.totals.End(run.Labels, end.Outcome, end.Duration))
}

// addRun adds what a run has counted, under the labels that it is summed by.
func addRun(t *tally.Tally, run *liveRun) error {
	for _, f := range run.families {
		for _, m := range f.GetMetric() {
			relabel(m, run.Labels)
		}
	}
	return t.Merge(run.families)
}

func relabel(m *dto.Metric, l tally.Labels) {
	for _, pair := range l.Pairs() {
		for _, p := range m.GetLabel() {
			if p.GetName() == pair.GetName() {
				p.Value = pair.Value
			}
		}
	}
}

// leave ends a connection of a run.
func (s *store) leave(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if run := s.live[id]; run != nil {
		run.conns--
		run.orphaned = time.Now()
	}
}

// orphans are the runs without a connection for which that is final.
func (s *store) orphans() (ids []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, run := range s.live {
		away := time.Since(run.orphaned)
		known := run.PID != 0
		switch {
		case run.conns > 0:
		case known && !(process{run.PID, run.Birth}).alive(), !known && away > unknownLimit, away > orphanLimit:
			ids = append(ids, id)
		}
	}
	return ids
}

// lose ends runs of which nothing more will be heard.
func (s *store) lose(ids []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, id := range ids {
		if run := s.live[id]; run != nil && run.conns <= 0 {
			errs = append(errs, s.end(id, run, End{tally.Lost, max(0, time.Since(run.Started))}))
		}
	}
	return errors.Join(errs...)
}
