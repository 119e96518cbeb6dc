// Package ktstr is for tests that run in a guest of ktstr-vmm: it sends the host what goes into the run's report, in
// addition to the output and the exit code, which need no package.
//
// A method returns when its message is in the ring: the
// host then reads it, whatever happens to the guest.
package ktstr

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// ErrNotInGuest means that this process does not run in a guest of ktstr-vmm.
var ErrNotInGuest = errors.New("not in a guest of ktstr-vmm")

// Stimulus describes what a step of a scenario did.
type Stimulus = shm.StimulusEvent

// Host is a connection to the host. Many goroutines may use it at once.
type Host struct {
	mu   sync.Mutex
	conn net.Conn
}

// Connect connects to the guest's agent. Outside a guest it fails with ErrNotInGuest.
func Connect() (*Host, error) {
	path := os.Getenv(agentproto.SocketEnv)
	if path == "" {
		return nil, fmt.Errorf("%w: %s is not set", ErrNotInGuest, agentproto.SocketEnv)
	}
	conn, err := net.Dial("unix", path)
	if err != nil {
		return nil, fmt.Errorf("reaching the guest's agent: %w", err)
	}
	return &Host{conn: conn}, nil
}

// Close closes the connection.
func (h *Host) Close() error { return h.conn.Close() }

// Result adds v, as JSON, to the report's results.
func (h *Host) Result(v any) error { return h.sendJSON(shm.TestResult, v) }

// Metrics sends v, as JSON, as payload metrics.
func (h *Host) Metrics(v any) error { return h.sendJSON(shm.PayloadMetrics, v) }

// RawOutput sends v, as JSON, as raw output.
func (h *Host) RawOutput(v any) error { return h.sendJSON(shm.RawOutput, v) }

// Stimulus adds an event to the report's stimuli.
func (h *Host) Stimulus(s Stimulus) error {
	p := s.Encode()
	return h.send(shm.Stimulus, p[:])
}

// ScenarioStart reports that a scenario begins. The agent also does so, once, for the whole command.
func (h *Host) ScenarioStart() error { return h.send(shm.ScenarioStart, nil) }

// ScenarioEnd reports that a scenario is over.
func (h *Host) ScenarioEnd() error { return h.send(shm.ScenarioEnd, nil) }

// SchedulerExit reports that the scheduler under test is gone: the run ends.
func (h *Host) SchedulerExit(code int32) error { return h.sendCode(shm.SchedulerExit, code) }

// Crash reports that the guest has crashed: the run ends.
func (h *Host) Crash(text string) error { return h.send(shm.Crash, []byte(text)) }

// Exit ends the run with a code, without waiting for the command's end.
func (h *Host) Exit(code int32) error { return h.sendCode(shm.Exit, code) }

func (h *Host) sendJSON(t shm.Type, v any) error {
	p, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("%v: %w", t, err)
	}
	return h.send(t, p)
}

func (h *Host) sendCode(t shm.Type, code int32) error {
	p := shm.EncodeCode(code)
	return h.send(t, p[:])
}

func (h *Host) send(t shm.Type, payload []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if err := agentproto.WriteRequest(h.conn, t, payload); err != nil {
		return fmt.Errorf("%v: %w", t, err)
	}
	if err := agentproto.ReadReply(h.conn); err != nil {
		return fmt.Errorf("%v: %w", t, err)
	}
	return nil
}
