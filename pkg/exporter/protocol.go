// Package exporter keeps metrics of runs beyond their end: a process that all runs of a user on a host report to, which
// sums them and serves the sum to Prometheus. A run never waits for it and never fails for lack of it.
package exporter

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"regexp"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"github.com/ktstr/ktstr-vmm/pkg/tally"
)

// protocolVersion is of what a run sends. The exporter refuses others.
const protocolVersion = 1

// Limits on what is read from a run's process, which may be any process of the user's.
const (
	maxFrame    = 256 << 10 // bytes
	maxFamilies = 256
)

// acknowledged is what the exporter answers when a run's end is in its state file.
const acknowledged = 'A'

// ErrProtocol is what is no run's message.
var ErrProtocol = errors.New("no message of a run")

// Run says which run it is.
type Run struct {
	ID      string // never a label
	Labels  tally.Labels
	Started time.Time
}

// End is how a run ended. The zero value is of a run that goes on.
type End struct {
	Outcome  string
	Duration time.Duration
}

// message is what a run sends: all that it has counted so far.
//
// In a stream, 4 bytes with the length go before it, most significant first. It is a header, which is a line of JSON,
// and metric families as Prometheus's delimited protobuf format has them. A file in the spool folder is one message.
type message struct {
	Run
	End
	families []*dto.MetricFamily
}

type header struct {
	Version     int     `json:"version"`
	ID          string  `json:"id"`
	Suite       string  `json:"suite"`
	Kernel      string  `json:"kernel"`
	Arch        string  `json:"arch"`
	Accelerator string  `json:"accelerator"`
	Started     float64 `json:"started"` // seconds since 1970
	Outcome     string  `json:"outcome,omitempty"`
	Duration    float64 `json:"duration,omitempty"` // seconds
}

func (m *message) encode() ([]byte, error) {
	l := m.Labels.Clean()
	line, err := json.Marshal(header{protocolVersion, m.ID, l.Suite, l.Kernel, l.Arch, l.Accelerator,
		float64(m.Started.UnixNano()) / 1e9, m.Outcome, m.Duration.Seconds()})
	if err != nil {
		return nil, err
	}
	b := bytes.NewBuffer(append(line, '\n'))
	if err := encodeFamilies(b, m.families); err != nil {
		return nil, err
	}
	if b.Len() > maxFrame {
		return nil, fmt.Errorf("%w: it has %d bytes, at most %d are taken", ErrProtocol, b.Len(), maxFrame)
	}
	return b.Bytes(), nil
}

func encodeFamilies(w io.Writer, families []*dto.MetricFamily) error {
	e := expfmt.NewEncoder(w, expfmt.NewFormat(expfmt.TypeProtoDelim))
	for _, f := range families {
		if err := e.Encode(f); err != nil {
			return err
		}
	}
	return nil
}

// decodeFamilies reads at most so many families.
func decodeFamilies(b []byte, limit int) ([]*dto.MetricFamily, error) {
	var families []*dto.MetricFamily
	d := expfmt.NewDecoder(bytes.NewReader(b), expfmt.NewFormat(expfmt.TypeProtoDelim))
	for {
		var f dto.MetricFamily
		if err := d.Decode(&f); errors.Is(err, io.EOF) {
			return families, nil
		} else if err != nil {
			return nil, err
		}
		if len(families) == limit {
			return nil, fmt.Errorf("more than %d families", limit)
		}
		families = append(families, &f)
	}
}

var (
	validID      = regexp.MustCompile(`^[\x21-\x7e]{1,64}$`)
	validOutcome = regexp.MustCompile(`^[a-z_]{0,32}$`)
)

func decode(b []byte) (*message, error) {
	line, rest, _ := bytes.Cut(b, []byte{'\n'})
	var h header
	if err := json.Unmarshal(line, &h); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	switch {
	case h.Version != protocolVersion:
		return nil, fmt.Errorf("%w: of version %d, and %d is known", ErrProtocol, h.Version, protocolVersion)
	case !validID.MatchString(h.ID):
		return nil, fmt.Errorf("%w: the id %q", ErrProtocol, h.ID[:min(len(h.ID), 64)])
	case !validOutcome.MatchString(h.Outcome):
		return nil, fmt.Errorf("%w: the outcome %q", ErrProtocol, h.Outcome[:min(len(h.Outcome), 64)])
	case !(h.Duration >= 0 && h.Duration <= maxSeconds) || !(h.Started >= 0 && h.Started <= maxSeconds):
		return nil, fmt.Errorf("%w: started at %v, for %v seconds", ErrProtocol, h.Started, h.Duration)
	}
	families, err := decodeFamilies(rest, maxFamilies)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return &message{
		Run: Run{ID: h.ID, Labels: tally.Labels{Suite: h.Suite, Kernel: h.Kernel, Arch: h.Arch,
			Accelerator: h.Accelerator}.Clean(), Started: time.Unix(0, int64(h.Started*1e9))},
		End:      End{Outcome: h.Outcome, Duration: time.Duration(h.Duration * 1e9)},
		families: families,
	}, nil
}

// maxSeconds is above any time that is meant, and fits in nanoseconds.
const maxSeconds = 1 << 33

func writeFrame(w io.Writer, body []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// readFrame calls begun after the length's first byte.
func readFrame(r *bufio.Reader, begun func()) ([]byte, error) {
	if _, err := r.Peek(1); err != nil {
		return nil, err
	}
	begun()
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxFrame {
		return nil, fmt.Errorf("%w: of %d bytes, at most %d are taken", ErrProtocol, n, maxFrame)
	}
	var b bytes.Buffer // grows with what comes, not with what is claimed
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// ringFill is how full the ring was at the last drain, 0 to 1.
func ringFill(families []*dto.MetricFamily) float64 {
	gauges := map[string]float64{}
	for _, f := range families {
		if m := f.GetMetric(); len(m) == 1 {
			gauges[f.GetName()] = m[0].GetGauge().GetValue()
		}
	}
	fill := gauges["ktstr_vmm_ring_used_bytes"] / gauges["ktstr_vmm_ring_capacity_bytes"]
	if math.IsNaN(fill) {
		return 0
	}
	return min(max(fill, 0), 1)
}
