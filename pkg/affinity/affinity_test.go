package affinity_test

import (
	"errors"
	"runtime"
	"slices"
	"testing"

	"github.com/ktstr/ktstr-vmm/pkg/affinity"
)

func TestParse(t *testing.T) {
	allowed := []int{0, 1, 2, 3, 5, 8, 9}
	for list, want := range map[string][]int{
		"0": {0}, "0-3,8": {0, 1, 2, 3, 8}, "9,8,5": {9, 8, 5}, "2-2": {2},
	} {
		if got, err := affinity.Parse(list, allowed); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v", list, got, err)
		}
	}
	for list, want := range map[string]error{
		"": affinity.ErrList, "x": affinity.ErrList, "1,": affinity.ErrList, "-1": affinity.ErrList, "1-": affinity.ErrList,
		"3-1": affinity.ErrList, "1-2-3": affinity.ErrList, "1024": affinity.ErrList, "0-99999999999": affinity.ErrList,
		"1,0-1": affinity.ErrList, "4": affinity.ErrCPU, "2-5": affinity.ErrCPU, "1023": affinity.ErrCPU,
	} {
		if got, err := affinity.Parse(list, allowed); !errors.Is(err, want) {
			t.Errorf("%q: %v, %v; want %v", list, got, err, want)
		}
	}
}

func TestFormat(t *testing.T) {
	for want, cpus := range map[string][]int{"": nil, "3": {3}, "0-1": {0, 1}, "0-3,8,10-11": {0, 1, 2, 3, 8, 10, 11}} {
		if got := affinity.Format(cpus); got != want {
			t.Errorf("%v: %q, want %q", cpus, got, want)
		}
	}
}

// A pinned thread may run where it was pinned to, and nowhere else.
func TestPin(t *testing.T) {
	all, err := affinity.Allowed()
	if err != nil || len(all) == 0 {
		t.Fatalf("%v, %v", all, err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		for _, want := range [][]int{{all[len(all)-1]}, all} {
			if err := affinity.Pin(0, want...); err != nil {
				t.Error(err)
			}
			if got, err := affinity.Allowed(); err != nil || !slices.Equal(got, want) {
				t.Errorf("pinned to %v, may run on %v, %v", want, got, err)
			}
		}
		if err := affinity.Pin(0, 1023); !errors.Is(err, affinity.ErrCPU) && !slices.Contains(all, 1023) {
			t.Error(err)
		}
	}()
	<-done
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"0", "0-3,8", "3-1", ",", "0-1023"} {
		f.Add(seed)
	}
	allowed := []int{0, 1, 2, 3, 5, 8, 1023}
	f.Fuzz(func(t *testing.T, list string) {
		cpus, err := affinity.Parse(list, allowed)
		if err != nil {
			if !errors.Is(err, affinity.ErrList) && !errors.Is(err, affinity.ErrCPU) {
				t.Fatal(err)
			}
			return
		}
		again, err := affinity.Parse(affinity.Format(cpus), allowed)
		if err != nil || !slices.Equal(again, cpus) {
			t.Fatalf("%q: %v, then %v, %v", list, cpus, again, err)
		}
	})
}
