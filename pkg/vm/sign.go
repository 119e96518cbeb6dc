package vm

import (
	"sync/atomic"
	"time"
)

// FirstSign is when a guest was first heard of. It is a back end's, for Instance's FirstExit.
type FirstSign struct{ at atomic.Pointer[time.Time] }

// Note is told of every sign; the first one counts.
func (s *FirstSign) Note() {
	if s.at.Load() == nil {
		now := time.Now()
		s.at.CompareAndSwap(nil, &now)
	}
}

// FirstExit implements Instance. Its time has the monotonic clock's reading, too.
func (s *FirstSign) FirstExit() time.Time {
	if at := s.at.Load(); at != nil {
		return *at
	}
	return time.Time{}
}
