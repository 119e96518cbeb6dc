package main

import (
	"bufio"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/fdt"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// codeBroken is inspect's exit code for a ring that could be read only in part.
const codeBroken = 1

func inspectCommand() *cobra.Command {
	var offset, length config.Size
	o := &inspection{}
	c := &cobra.Command{
		Use:   "inspect IMAGE",
		Short: "Decode the ring in a file: a memory image, a core, a recording; or a device tree",
		Long: `Decode the ring in a file: a memory image, a core, a recording; or a device tree.

The ring is where --offset says, or else where the device tree puts it that is in an
image of an arm64 guest's RAM; of a device tree alone, what it says of memory is shown.

With --follow the file is one that a writer is at work on, such as the RAM of a guest that
runs: messages are shown as they come, until Ctrl-C or the file's end. Nothing is written to
it, and nobody waits for inspect: if it is slower than the writer, it says what it missed.

Instead of a file it follows a run, too, by its control socket. Then times are those at which
the run read the messages, and --since may lie before now: see ktstr-vmm ctl tail.`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return fmt.Errorf("inspect takes one IMAGE, %d were given", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if info, err := os.Stat(args[0]); err == nil && info.Mode()&fs.ModeSocket != 0 {
				if !o.follow || c.Flags().Changed("offset") || c.Flags().Changed("size") {
					return fmt.Errorf("%s is the socket of a run: inspect shows it with --follow, without --offset and --size; "+
						"ktstr-vmm ctl ring > FILE makes a file of the run's ring", args[0])
				}
				return o.followingRun(c, args[0])
			}
			// A named pipe is no image, whether it has a writer or not.
			f, err := os.OpenFile(args[0], os.O_RDONLY|syscall.O_NONBLOCK, 0)
			if err != nil {
				return err
			}
			defer f.Close()
			region, err := regionOf(f, uint64(offset), uint64(length), c.Flags().Changed("size"))
			if err != nil {
				return err
			}
			if o.follow {
				return o.following(c, f, region)
			}
			return o.inspect(c.OutOrStdout(), region)
		},
	}
	c.Flags().BoolVar(&o.json, "json", false, "print JSON: one object, or with --follow one in each line")
	c.Flags().BoolVar(&o.all, "all", false, "also what has been read already, from a ring that has not wrapped")
	c.Flags().BoolVarP(&o.follow, "follow", "f", false, "go on with what is written to the file from now on")
	c.Flags().StringSliceVar(&o.typeNames, "type", nil, "only messages of these types: by name, or 0x and their number")
	c.Flags().StringVar(&o.sinceText, "since", "",
		"with --follow, only what comes from then on: a time, as 15:04:05 or in RFC 3339, or how long ago, as 0s")
	c.Flags().Var(&offset, "offset", "where in the file the ring's region starts, or the RAM")
	c.Flags().Var(&length, "size", "the size of that; all up to the file's end if it is not given")
	mustComplete(c, "type", completeList(typeNames()))
	mustComplete(c, "since", cobra.FixedCompletions([]string{"0s"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// inspection is what inspect is asked for.
type inspection struct {
	json, all, follow bool
	typeNames         []string
	sinceText         string

	types map[shm.Type]bool // nil: all
	since time.Time         // zero: no --since
}

// check judges what was asked for.
func (o *inspection) check() (err error) {
	for _, name := range o.typeNames {
		t, err := shm.ParseType(name)
		if err != nil {
			return fmt.Errorf("--type: %w", err)
		}
		if o.types == nil {
			o.types = map[shm.Type]bool{}
		}
		o.types[t] = true
	}
	if o.sinceText == "" {
		return nil
	}
	if !o.follow {
		return errors.New("--since is for --follow: messages in a file have no times")
	}
	o.since, err = parseSince(o.sinceText, time.Now())
	return err
}

// wants reports whether messages of this type are shown.
func (o *inspection) wants(t shm.Type) bool { return o.types == nil || o.types[t] }

// typeNames are the names of the known types.
func typeNames() (names []string) {
	for _, t := range shm.Types() {
		names = append(names, t.String())
	}
	return names
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

// contents is what there is in an image. An arm64 guest's RAM has a device tree that says where the ring is.
type contents struct {
	memory *fdt.Memory       // what the device tree says; nil: there is no tree, or the image begins with a ring
	ring   *shm.Snapshot     // nil: there is not even a header
	region *io.SectionReader // the ring's
	err    error             // why no message can be read
}

// contentsOf finds the ring in a region: at its start, or where a device tree in it puts the ring. A region that is
// no larger than a tree can be is a tree alone, and no error.
func contentsOf(region *io.SectionReader) (c contents) {
	c.region = region
	if c.ring, c.err = ringIn(region); !errors.Is(c.err, shm.ErrNoRing) {
		return c
	}
	memory, err := fdt.Find(region, region.Size())
	switch {
	case errors.Is(err, fdt.ErrNoTree):
		return c
	case err != nil && !errors.Is(err, fdt.ErrNoRing):
		return contents{err: err}
	}
	c = contents{memory: &memory, err: err}
	if err == nil && region.Size() > fdt.MaxSize {
		if c.region, c.err = ringInRAM(region, memory); c.err == nil {
			c.ring, c.err = ringIn(c.region)
		}
	}
	return c
}

// ringInRAM is the ring's region in an image of RAM, where a device tree puts it.
func ringInRAM(image *io.SectionReader, memory fdt.Memory) (*io.SectionReader, error) {
	ring, err := memory.Ring()
	if err != nil {
		return nil, err
	}
	at, ok := memory.Offset(ring)
	if size := uint64(image.Size()); !ok || at >= size {
		return nil, fmt.Errorf("%w: by the device tree it has %s, and the image has 0x%x bytes, from RAM's start",
			shm.ErrNoRing, ring, size)
	}
	return io.NewSectionReader(image, int64(at), int64(min(ring.Size, uint64(image.Size())-at))), nil
}

// ringIn is the ring at the start of a region. With ErrNoRing there may be a header all the same.
func ringIn(region *io.SectionReader) (*shm.Snapshot, error) {
	ring, err := shm.NewSnapshot(region, uint64(region.Size()))
	if err != nil && !errors.Is(err, shm.ErrNoRing) {
		return nil, err
	}
	return ring, err
}

// inspect prints what is in an image as far as it can be read.
func (o *inspection) inspect(w io.Writer, region *io.SectionReader) error {
	out := bufio.NewWriter(w)
	print := o.text
	if o.json {
		print = o.object
	}
	c := contentsOf(region)
	if o.all && c.ring != nil && c.err == nil {
		c.err = c.ring.Rewind()
	}
	readErr, writeErr := print(out, c)
	if writeErr = errors.Join(writeErr, out.Flush()); writeErr != nil {
		return fmt.Errorf("writing what was read: %w", writeErr)
	}
	switch {
	case c.err != nil:
		return &exitError{run.CodeFailed, c.err}
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

// jsonMemory is what a device tree says.
type jsonMemory struct {
	RAM        []jsonRange    `json:"ram"`
	Reserved   []jsonReserved `json:"reserved"`
	MemReserve []jsonRange    `json:"memreserve"`
}

type jsonRange struct {
	Start string `json:"start"`
	Size  uint64 `json:"size"`
}

type jsonReserved struct {
	Name string `json:"name"`
	jsonRange
	NoMap bool `json:"no_map"`
}

func newJSONMemory(m fdt.Memory) jsonMemory {
	rangeOf := func(r fdt.Range) jsonRange { return jsonRange{fmt.Sprintf("0x%x", r.Start), r.Size} }
	j := jsonMemory{[]jsonRange{}, []jsonReserved{}, []jsonRange{}} // none is [], not null
	for _, r := range m.RAM {
		j.RAM = append(j.RAM, rangeOf(r))
	}
	for _, r := range m.Reserved {
		j.Reserved = append(j.Reserved, jsonReserved{r.Name, rangeOf(r.Range), r.NoMap})
	}
	for _, r := range m.MemReserve {
		j.MemReserve = append(j.MemReserve, rangeOf(r))
	}
	return j
}

func newJSONHeader(h shm.Header) jsonHeader {
	return jsonHeader{h.Magic, h.Version, h.Capacity, h.Control[0], h.Control[1],
		[2]int{int(h.Control[2]), int(h.Control[3])}, h.WritePtr, h.ReadPtr, h.Drops}
}

// object streams the JSON object, for an image may hold more than should lie in memory twice.
func (o *inspection) object(w *bufio.Writer, c contents) (readErr, writeErr error) {
	fmt.Fprint(w, "{")
	if c.memory != nil {
		memory, _ := json.Marshal(newJSONMemory(*c.memory)) // numbers and names always marshal
		fmt.Fprintf(w, `"memory": %s, `, memory)
	}
	header := []byte("null")
	drops := uint64(0)
	if c.ring != nil {
		header, _ = json.Marshal(newJSONHeader(c.ring.Header()))
		drops = c.ring.Drops()
	}
	fmt.Fprintf(w, `"header": %s, "entries": [`, header)
	separator := "\n  "
	readErr = c.drain(func(m shm.Message) error {
		if !o.wants(m.Type) {
			return nil
		}
		fmt.Fprintf(w, `%s{"type": "%s", "type_id": %d, "payload": "`, separator, formatName(m.Type), uint32(m.Type))
		_, _ = hex.NewEncoder(w).Write(m.Payload)
		_, err := fmt.Fprintf(w, `", "crc_ok": %t}`, m.CRCOK) // w keeps its first error
		separator = ",\n  "
		return err
	})
	text := ""
	if readErr != nil {
		text = readErr.Error()
	}
	quoted, _ := json.Marshal(text)
	_, writeErr = fmt.Fprintf(w, `], "drops": %d, "error": %s}`+"\n", drops, quoted)
	return readErr, writeErr
}

// drain passes the unread messages to fn.
func (c contents) drain(fn func(shm.Message) error) error {
	if c.err != nil || c.ring == nil {
		return c.err
	}
	return c.ring.Drain(fn)
}

// formatName is a type's name in the format: what is not of its nine, our own too, is a number.
func formatName(t shm.Type) string {
	if t == shm.Stdout || t == shm.Stderr {
		return fmt.Sprintf("0x%08x", uint32(t))
	}
	return t.String()
}

func (o *inspection) text(w *bufio.Writer, c contents) (readErr, writeErr error) {
	if c.memory != nil {
		memoryText(w, *c.memory)
	}
	if c.ring != nil {
		headerText(w, c.ring.Header())
	}
	if c.err != nil || c.ring == nil {
		return c.err, nil
	}
	n, shown := 0, 0
	readErr = c.drain(func(m shm.Message) error {
		n++
		if !o.wants(m.Type) {
			return nil
		}
		shown++
		_, err := fmt.Fprintf(w, "%6d  %s\n", n-1, messageText(m))
		return err
	})
	of := ""
	if o.types != nil {
		of = fmt.Sprintf(" of %d", n)
	}
	_, writeErr = fmt.Fprintf(w, "%d%s messages\n", shown, of)
	return readErr, writeErr
}

// messageText describes a message in a line.
func messageText(m shm.Message) string {
	crc := ""
	if !m.CRCOK {
		crc = "  (CRC is wrong)"
	}
	return fmt.Sprintf("%-4v  %d bytes  %s%s", m.Type, len(m.Payload), report.Describe(m), crc)
}

func memoryText(w io.Writer, m fdt.Memory) {
	for _, r := range m.RAM {
		fmt.Fprintf(w, "%-10s %v\n", "RAM", r)
	}
	for _, r := range m.Reserved {
		noMap := ""
		if r.NoMap {
			noMap = ", no-map"
		}
		fmt.Fprintf(w, "%-10s %v, %s%s\n", "reserved", r.Range, r.Name, noMap)
	}
	for _, r := range m.MemReserve {
		fmt.Fprintf(w, "%-10s %v\n", "memreserve", r)
	}
}

func headerText(w io.Writer, h shm.Header) {
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
