package report

import (
	"io"
	"sync"
	"time"
)

// Stream writes text to a writer that may be slow or stuck, without making its caller wait.
type Stream struct {
	w     io.Writer
	wake  chan struct{} // there is text, or the end
	ended chan struct{}

	mu      sync.Mutex
	pending []byte
	closed  bool
	err     error
}

// NewStream returns a stream to w; Close ends it.
func NewStream(w io.Writer) *Stream {
	s := &Stream{w: w, wake: make(chan struct{}, 1), ended: make(chan struct{})}
	go s.run()
	return s
}

// Write queues p, however much waits already: who writes without end looks at Pending.
func (s *Stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return 0, s.err
	}
	s.pending = append(s.pending, p...)
	s.signal()
	return len(p), nil
}

// Pending is how many bytes wait to be written.
func (s *Stream) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending)
}

// Close writes what is queued and returns the writer's first error. A writer that takes nothing
// for as long as limit is left to itself, and io.ErrShortWrite is returned.
func (s *Stream) Close(limit time.Duration) error {
	s.mu.Lock()
	s.closed = true
	s.signal()
	s.mu.Unlock()
	select {
	case <-s.ended:
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.err
	case <-time.After(limit):
		return io.ErrShortWrite
	}
}

func (s *Stream) signal() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

func (s *Stream) run() {
	defer close(s.ended)
	var batch []byte
	for range s.wake {
		s.mu.Lock()
		batch, s.pending = s.pending, batch[:0]
		closed := s.closed
		s.mu.Unlock()
		if len(batch) > 0 {
			if _, err := s.w.Write(batch); err != nil {
				s.mu.Lock()
				s.err = err
				s.pending = nil
				s.mu.Unlock()
				return
			}
		}
		if closed {
			return
		}
	}
}
