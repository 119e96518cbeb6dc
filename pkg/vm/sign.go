package vm

import (
	"sync/atomic"
	"time"
)

// FirstSign records when a guest first showed that it runs. Back ends use it for Instance's FirstExit.
type FirstSign struct{ at atomic.Pointer[time.Time] }

// Note is called for every sign; the first one counts.
func (s *FirstSign) Note() {
	if s.at.Load() == nil {
		now := time.Now()
		s.at.CompareAndSwap(nil, &now)
	}
}

// FirstExit implements Instance. The time includes a monotonic clock reading.
func (s *FirstSign) FirstExit() time.Time {
	if at := s.at.Load(); at != nil {
		return *at
	}
	return time.Time{}
}
