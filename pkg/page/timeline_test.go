package page

import (
	"strings"
	"testing"
)

// The times of an axis are round, and there are some up to its end, however long a run was.
func TestAxis(t *testing.T) {
	for seconds, want := range map[float64]string{
		0.187: "0 s, 0.05 s, 0.1 s, 0.15 s",
		1:     "0 s, 0.2 s, 0.4 s, 0.6 s, 0.8 s, 1 s",
		1.2:   "0 s, 0.25 s, 0.5 s, 0.75 s, 1 s",
		4:     "0 s, 1 s, 2 s, 3 s, 4 s",
		7.52:  "0 s, 2 s, 4 s, 6 s",
		9.9:   "0 s, 2 s, 4 s, 6 s, 8 s",
		86400: "0 s, 20000 s, 40000 s, 60000 s, 80000 s",
	} {
		a := &Timeline{Seconds: seconds}
		a.axis()
		var got []string
		for _, tick := range a.Ticks {
			got = append(got, tick.Text)
		}
		if got := strings.Join(got, ", "); got != want {
			t.Errorf("of %v s: %s; want %s", seconds, got, want)
		}
	}
}
