package suite

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Shard is one of several parts of a suite, which different machines run.
type Shard struct {
	Index int `json:"index"` // from 1
	Count int `json:"count"`
}

// ParseShard parses "I/N".
func ParseShard(s string) (Shard, error) {
	first, second, _ := strings.Cut(s, "/")
	i, err := strconv.Atoi(first)
	n, errN := strconv.Atoi(second)
	if err != nil || errN != nil || i < 1 || n < i || n > maxRuns {
		return Shard{}, fmt.Errorf("shard %q: it is I/N, with I from 1 to N and N up to %d, as in 1/4", s, maxRuns)
	}
	return Shard{i, n}, nil
}

// String returns "I/N".
func (s Shard) String() string { return fmt.Sprintf("%d/%d", s.Index, s.Count) }

// Of returns a shard's runs. It depends on nothing but the runs' names and how long they took before, so that each
// machine comes to the same: from the longest to the shortest, each run goes to the shard that has least to do, the
// first of several. One whose duration is not known counts as much as they do on average.
func (s Shard) Of(runs []*Run, durations map[string]float64) []*Run {
	sum, known := 0.0, 0
	for _, x := range runs {
		if d, ok := durations[x.Name]; ok {
			sum += d
			known++
		}
	}
	usual := 1.0
	if sum > 0 {
		usual = sum / float64(known)
	}
	weight := func(x *Run) float64 {
		if d, ok := durations[x.Name]; ok {
			return max(d, usual/1000) // so that those that took no time are divided, too
		}
		return usual
	}
	sorted := slices.SortedFunc(slices.Values(runs), func(a, b *Run) int {
		return cmp.Or(cmp.Compare(weight(b), weight(a)), cmp.Compare(a.Name, b.Name))
	})
	loads, mine := make([]float64, s.Count), map[*Run]bool{}
	for _, x := range sorted {
		i := slices.Index(loads, slices.Min(loads))
		loads[i] += weight(x)
		mine[x] = i == s.Index-1
	}
	return slices.DeleteFunc(slices.Clone(runs), func(x *Run) bool { return !mine[x] })
}

// Filter returns the runs whose name or a label matches.
func Filter(runs []*Run, re *regexp.Regexp) []*Run {
	return slices.DeleteFunc(slices.Clone(runs), func(x *Run) bool {
		return !re.MatchString(x.Name) && !slices.ContainsFunc(x.Labels, re.MatchString)
	})
}
