package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// codeBroken is inspect's exit code for a ring that could be read only in part.
const codeBroken = 1

func inspectCommand() *cobra.Command {
	var offset, length size
	var asJSON bool
	c := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Decode the ring in a file: a memory image, a core, a recording",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("inspect takes one IMAGE, %d were given", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			region, err := regionOf(f, uint64(offset), uint64(length), c.Flags().Changed("size"))
			if err != nil {
				return err
			}
			return inspect(c.OutOrStdout(), region, asJSON)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().Var(&offset, "offset", "where in the file the ring's region starts")
	c.Flags().Var(&length, "size", "the region's size; all up to the file's end if it is not given")
	return c
}

// regionOf is the part of a file that the flags name.
func regionOf(f *os.File, offset, length uint64, limited bool) (*io.SectionReader, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s is a folder, not an image", f.Name())
	}
	end, err := f.Seek(0, io.SeekEnd) // a block device's size is not in its Stat
	if err != nil {
		return nil, fmt.Errorf("%s has no size, copy it to a file first: %w", f.Name(), err)
	}
	size := uint64(end)
	if offset > size {
		return nil, fmt.Errorf("--offset %d: %s has only %d bytes", offset, f.Name(), size)
	}
	rest := size - offset
	if limited {
		rest = min(rest, length)
	}
	return io.NewSectionReader(f, int64(offset), int64(rest)), nil
}

// inspect prints the ring in an image as far as it can be read.
func inspect(w io.Writer, region *io.SectionReader, asJSON bool) error {
	out := bufio.NewWriter(w)
	print := inspectText
	if asJSON {
		print = inspectJSON
	}
	ring, err := shm.NewSnapshot(region, uint64(region.Size()))
	if err != nil && (ring == nil || !errors.Is(err, shm.ErrNoRing)) {
		ring = nil
	}
	readErr, writeErr := print(out, ring, err)
	if writeErr = errors.Join(writeErr, out.Flush()); writeErr != nil {
		return fmt.Errorf("writing what was read: %w", writeErr)
	}
	switch {
	case err != nil:
		return &exitError{run.CodeFailed, err}
	case readErr != nil:
		return &exitError{codeBroken, readErr}
	}
	return nil
}

type jsonHeader struct {
	Magic    uint32 `json:"magic"`
	Version  uint32 `json:"version"`
	Capacity uint32 `json:"capacity"`
	Dump     byte   `json:"dump_request"`
	Stall    byte   `json:"stall_request"`
	Slots    [2]int `json:"signal_slots"`
	WritePtr uint64 `json:"write_ptr"`
	ReadPtr  uint64 `json:"read_ptr"`
	Drops    uint64 `json:"drops"`
}

// inspectJSON streams the object, for an image may hold more than should lie in memory twice.
// ring is nil where there is not even a header.
func inspectJSON(w *bufio.Writer, ring *shm.Snapshot, noRing error) (readErr, writeErr error) {
	header := []byte("null")
	drops := uint64(0)
	if ring != nil {
		h := ring.Header()
		header, _ = json.Marshal(jsonHeader{h.Magic, h.Version, h.Capacity, h.Control[0], h.Control[1],
			[2]int{int(h.Control[2]), int(h.Control[3])}, h.WritePtr, h.ReadPtr, h.Drops}) // numbers always marshal
		drops = ring.Drops()
	}
	fmt.Fprintf(w, `{"header": %s, "entries": [`, header)
	separator := "\n  "
	readErr = noRing
	if noRing == nil {
		readErr = ring.Drain(func(m shm.Message) error {
			fmt.Fprintf(w, `%s{"type": "%s", "type_id": %d, "payload": "`, separator, formatName(m.Type), uint32(m.Type))
			_, _ = hex.NewEncoder(w).Write(m.Payload)
			_, err := fmt.Fprintf(w, `", "crc_ok": %t}`, m.CRCOK) // w keeps its first error
			separator = ",\n  "
			return err
		})
	}
	text := ""
	if readErr != nil {
		text = readErr.Error()
	}
	quoted, _ := json.Marshal(text)
	_, writeErr = fmt.Fprintf(w, `], "drops": %d, "error": %s}`+"\n", drops, quoted)
	return readErr, writeErr
}

// formatName is a type's name in the format: what is not of its nine, our own too, is a number.
func formatName(t shm.Type) string {
	if t == shm.Stdout || t == shm.Stderr {
		return fmt.Sprintf("0x%08x", uint32(t))
	}
	return t.String()
}

func inspectText(w *bufio.Writer, ring *shm.Snapshot, noRing error) (readErr, writeErr error) {
	if ring != nil {
		h := ring.Header()
		for _, line := range []struct {
			name   string
			format string
			args   []any
		}{
			{"magic", "0x%08x", []any{h.Magic}},
			{"version", "%d", []any{h.Version}},
			{"capacity", "%d bytes", []any{h.Capacity}},
			{"write_ptr", "0x%x", []any{h.WritePtr}},
			{"read_ptr", "0x%x", []any{h.ReadPtr}},
			{"unread", "%d bytes", []any{h.WritePtr - h.ReadPtr}},
			{"drops", "%d", []any{h.Drops}},
			{"control", "dump 0x%02x, stall 0x%02x, slot 0 0x%02x, slot 1 0x%02x",
				[]any{h.Control[0], h.Control[1], h.Control[2], h.Control[3]}},
		} {
			fmt.Fprintf(w, "%-10s "+line.format+"\n", append([]any{line.name}, line.args...)...)
		}
	}
	if noRing != nil {
		return noRing, nil
	}
	n := 0
	readErr = ring.Drain(func(m shm.Message) error {
		crc := ""
		if !m.CRCOK {
			crc = "  (CRC is wrong)"
		}
		_, err := fmt.Fprintf(w, "%6d  %-4v  %d bytes  %s%s\n", n, m.Type, len(m.Payload), report.Describe(m), crc)
		n++
		return err
	})
	_, writeErr = fmt.Fprintf(w, "%d messages\n", n)
	return readErr, writeErr
}
