package report

import (
	"context"
	"io"
	"sync"
)

// streamChunk is what a Stream gives its writer at a time.
const streamChunk = 64 << 10

// Stream writes text to a writer that may be slow or stuck, from a goroutine of its own. Only Flush and Close wait for
// the writer, and no longer than their contexts allow.
type Stream struct {
	w     io.Writer
	wake  chan struct{} // there is text, or the end
	moved chan struct{} // the writer took something, or failed
	ended chan struct{}

	mu       sync.Mutex
	pending  []byte
	closed   bool
	err      error  // the writer's
	accepted uint64 // bytes that were given to Write
	written  uint64 // bytes that the writer took
}

// NewStream returns a stream to w. Close ends it.
func NewStream(w io.Writer) *Stream {
	s := &Stream{w: w, wake: make(chan struct{}, 1), moved: make(chan struct{}, 1), ended: make(chan struct{})}
	go s.run()
	return s
}

// Write queues all of p and returns at once. A caller that writes without end should look at Pending or use TryWrite.
// It fails with the writer's error, or with io.ErrClosedPipe after Close.
func (s *Stream) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queue(p)
}

// TryWrite queues p unless more than limit bytes would then be waiting, and reports whether it did. A p larger than
// limit is queued only when nothing else is waiting. If the writer has failed, p is accepted, and lost.
func (s *Stream) TryWrite(p []byte, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil && !s.closed && len(s.pending) > 0 && len(s.pending)+len(p) > limit {
		return false
	}
	_, _ = s.queue(p) // its error comes with Flush
	return true
}

func (s *Stream) queue(p []byte) (int, error) {
	s.accepted += uint64(len(p))
	switch {
	case s.err != nil:
		return 0, s.err
	case s.closed:
		return 0, io.ErrClosedPipe
	}
	s.pending = append(s.pending, p...)
	signal(s.wake)
	return len(p), nil
}

// Pending returns how many bytes are waiting to be written.
func (s *Stream) Pending() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.pending)
}

// Lost returns how many bytes given to Write have not been written.
func (s *Stream) Lost() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.accepted - s.written
}

// Flush waits until everything given to Write has been written. Only one caller at a time may call it. It fails with
// the writer's error, or with io.ErrShortWrite if ctx ends first.
func (s *Stream) Flush(ctx context.Context) error {
	for {
		s.mu.Lock()
		done, err := s.accepted == s.written, s.err
		s.mu.Unlock()
		if done || err != nil {
			return err
		}
		select {
		case <-s.moved:
			continue
		default:
		}
		select {
		case <-s.moved:
		case <-s.ended: // given up before
			return io.ErrShortWrite
		case <-ctx.Done():
			return io.ErrShortWrite
		}
	}
}

// Close flushes and ends the stream. A writer that is stuck when ctx ends is abandoned.
func (s *Stream) Close(ctx context.Context) error {
	err := s.Flush(ctx)
	s.mu.Lock()
	s.closed, s.pending = true, nil
	s.mu.Unlock()
	signal(s.wake)
	if err == nil {
		<-s.ended
	}
	return err
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
			s.mu.Lock()
			s.written += uint64(n)
			if err != nil {
				s.err, s.pending = err, nil
			}
			s.mu.Unlock()
			signal(s.moved)
			if err != nil {
				return
			}
		}
		if closed {
			return
		}
	}
}
