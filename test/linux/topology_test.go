//go:build linuxbed

package linux

import (
	"fmt"
	"strings"
	"testing"
)

// A guest has one socket of cores without threads, whose last level of cache all of them share; no core shares the
// levels before it.
func TestOneSocketOneLastLevelCache(t *testing.T) {
	t.Parallel()
	e := vmmRun(t, "--cpus", "3", "--", "busybox", "sh", "-c", `cd /sys/devices/system/cpu
		for c in 0 1 2; do
			echo thread $c 0 $(cat cpu$c/topology/thread_siblings_list)
			echo package $c 0 $(cat cpu$c/topology/package_cpus_list)
			for i in cpu$c/cache/index*; do
				[ -e $i/level ] && echo cache $c $(cat $i/level $i/shared_cpu_list)
			done
		done; true`)
	if e.code != 0 {
		t.Fatalf("exit code %d, %s", e.code, e.stderr)
	}
	type line struct {
		what       string
		cpu, level int
		shared     string
	}
	var lines []line
	last, caches := 0, 0
	for text := range strings.Lines(string(e.stdout)) {
		var l line
		if _, err := fmt.Sscan(text, &l.what, &l.cpu, &l.level, &l.shared); err != nil {
			t.Fatalf("%q: %v", text, err)
		}
		if l.what == "cache" {
			last, caches = max(last, l.level), caches+1
		}
		lines = append(lines, l)
	}
	if len(lines)-caches != 6 {
		t.Errorf("%s", e.stdout)
	}
	for _, l := range lines {
		want := fmt.Sprint(l.cpu)
		if l.what == "package" || l.what == "cache" && l.level == last && last > 1 {
			want = "0-2"
		}
		if l.shared != want {
			t.Errorf("%s of CPU %d, level %d: shared by %s, want %s", l.what, l.cpu, l.level, l.shared, want)
		}
	}
	if caches == 0 { // an emulated AMD without its leaves of caches
		t.Log("this host shows its guests no caches")
	}
}
