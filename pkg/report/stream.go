package report

import (
	"fmt"
	"io"
	"sync"
	"time"
)

// streamChunk is what a Stream gives its writer at a time.
const streamChunk = 64 << 10

// Stream writes text to a writer that may be slow or stuck, from a goroutine of its own.
type Stream struct {
	w        io.Writer
	limit    int           // bytes that may wait; 0: any number
	patience time.Duration // how long a full stream waits for its writer to take anything
	wake     chan struct{} // there is text, or the end
	room     chan struct{} // the writer took something
	ended    chan struct{}

	mu      sync.Mutex
	pending []byte
	closed  bool
	err     error
}

// NewStream returns a stream to w that takes whatever it is given, at once: who writes without end
// looks at Pending. Close ends it.
func NewStream(w io.Writer) *Stream { return NewBoundedStream(w, 0, 0) }

// NewBoundedStream returns a stream to w of which at most limit bytes wait. Write then waits for
// room. A writer that takes nothing for as long as patience is given up, and what is written from
// then on is refused with io.ErrShortWrite.
func NewBoundedStream(w io.Writer, limit int, patience time.Duration) *Stream {
	s := &Stream{
		w: w, limit: limit, patience: patience,
		wake: make(chan struct{}, 1), room: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	go s.run()
	return s
}

// Write queues p.
func (s *Stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.err == nil && s.limit > 0 && len(s.pending) > 0 && len(s.pending)+len(p) > s.limit {
		s.mu.Unlock()
		taken := s.waitForRoom(s.patience)
		s.mu.Lock()
		if !taken && s.err == nil {
			s.err = fmt.Errorf("%w: nothing was taken for %v", io.ErrShortWrite, s.patience)
		}
	}
	if s.err != nil {
		return 0, s.err
	}
	s.pending = append(s.pending, p...)
	signal(s.wake)
	return len(p), nil
}

// Pending is how many bytes wait to be written.
func (s *Stream) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending)
}

// Close writes what is queued and returns the stream's first error. A writer that takes nothing
// for as long as patience is left to itself, and io.ErrShortWrite is returned.
func (s *Stream) Close(patience time.Duration) error {
	s.mu.Lock()
	s.closed = true
	signal(s.wake)
	s.mu.Unlock()
	for {
		select {
		case <-s.ended:
			s.mu.Lock()
			defer s.mu.Unlock()
			return s.err
		default:
		}
		if !s.waitForRoom(patience) {
			return io.ErrShortWrite
		}
	}
}

// waitForRoom waits until the writer has taken something or the stream has ended.
func (s *Stream) waitForRoom(patience time.Duration) bool {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-s.room:
	case <-s.ended:
	case <-timer.C:
		return false
	}
	return true
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
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
		for part := batch; len(part) > 0; {
			n, err := s.w.Write(part[:min(len(part), streamChunk)])
			part = part[n:]
			signal(s.room)
			if err != nil {
				s.mu.Lock()
				if s.err == nil {
					s.err = err
				}
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
