package topology

import (
	"fmt"
	"strconv"
	"strings"
)

// Parse reads an arrangement: a number of cores, or sockets=S,dies=D,cores=C,threads=T, of which parts may be left out:
// they are 1. It fails with ErrTopology. The result has defaults where they are not 1: see WithDefaults.
func Parse(text string) (Topology, error) {
	if !strings.Contains(text, "=") {
		n, err := number("processors", text)
		return OfCores(n), err
	}
	var t Topology
	fields := map[string]*int{"sockets": &t.Sockets, "dies": &t.Dies, "cores": &t.Cores, "threads": &t.Threads}
	for part := range strings.SplitSeq(text, ",") {
		name, value, _ := strings.Cut(part, "=")
		field, ok := fields[name]
		switch {
		case !ok:
			return Topology{}, fmt.Errorf("%w: %q, it is a number, or sockets=S,dies=D,cores=C,threads=T", ErrTopology, part)
		case *field != 0:
			return Topology{}, fmt.Errorf("%w: %s= is there twice", ErrTopology, name)
		}
		var err error
		if *field, err = number(name, value); err != nil {
			return Topology{}, err
		}
	}
	return t, nil
}

// ParseLLC reads how many cores share a last-level cache: cores=K. It fails with ErrTopology.
func ParseLLC(text string) (int, error) {
	value, ok := strings.CutPrefix(text, "cores=")
	if !ok {
		return 0, fmt.Errorf("%w: %q, it is cores=K", ErrTopology, text)
	}
	return number("cores of a last-level cache", value)
}

// ParseNUMA reads NUMA nodes and their distances: N, or N,distance=D for a distance between any two, or
// N,distance=ROW/ROW/… with a row for each node, the distances from it to each node with colons between them, as in
// 2,distance=10:30/20:10. Distances are nil where the text has none. It fails with ErrTopology; whether distances are
// possible is Topology's.
func ParseNUMA(text string) (nodes int, distances [][]uint8, err error) {
	count, rest, more := strings.Cut(text, ",")
	if nodes, err = number("NUMA nodes", count); err != nil {
		return 0, nil, err
	}
	if nodes > MaxNodes {
		return 0, nil, fmt.Errorf("%w: %d NUMA nodes, it can be 1 to %d", ErrTopology, nodes, MaxNodes)
	}
	if !more {
		return nodes, nil, nil
	}
	value, ok := strings.CutPrefix(rest, "distance=")
	if !ok {
		return 0, nil, fmt.Errorf("%w: %q, it is distance=D, or distance=ROW/ROW/… with a row of D:D:… for each node",
			ErrTopology, rest)
	}
	if !strings.ContainsAny(value, ":/") {
		between, err := distance(value)
		if err != nil {
			return 0, nil, err
		}
		return nodes, Distance(nodes, between), nil
	}
	for row := range strings.SplitSeq(value, "/") {
		var to []uint8
		for text := range strings.SplitSeq(row, ":") {
			d, err := distance(text)
			if err != nil {
				return 0, nil, err
			}
			to = append(to, d)
		}
		distances = append(distances, to)
	}
	return nodes, distances, nil
}

// number is a count from 1 on.
func number(what, text string) (int, error) {
	n, err := strconv.ParseUint(text, 10, 31)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("%w: %s %q, it has to be a number from 1 on", ErrTopology, what, text)
	}
	return int(n), nil
}

func distance(text string) (uint8, error) {
	d, err := strconv.ParseUint(text, 10, 8)
	if err != nil || d < LocalDistance {
		return 0, fmt.Errorf("%w: distance %q, it can be %d to %d", ErrTopology, text, LocalDistance, UnreachableDistance)
	}
	return uint8(d), nil
}
