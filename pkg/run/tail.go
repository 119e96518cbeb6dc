package run

import "sync"

// tail is an io.Writer that keeps the last bytes written to it and never waits.
type tail struct {
	mu    sync.Mutex
	buf   []byte // grows to limit, then is a ring that begins at total % limit
	limit int
	total uint64 // bytes ever written
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, b := range p {
		if len(t.buf) < t.limit {
			t.buf = append(t.buf, b)
		} else {
			t.buf[t.total%uint64(t.limit)] = b
		}
		t.total++
	}
	return len(p), nil
}

// bytes returns what was kept, and how much came before it.
func (t *tail) bytes() (kept []byte, omitted uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.buf) < t.limit {
		return append([]byte(nil), t.buf...), 0
	}
	at := t.total % uint64(t.limit)
	return append(append([]byte(nil), t.buf[at:]...), t.buf[:at]...), t.total - uint64(t.limit)
}
