package main

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

const (
	// followPending is how much of what was read waits for a slow reader of ours, in bytes. Then nothing is read, and
	// the writer of the ring may overtake us.
	followPending = 1 << 20
	// lookPeriod is how often it is looked whether a followed file is still there.
	lookPeriod = 250 * time.Millisecond
	// followPayload is how much of a payload a line of JSON has, in bytes; one may be as large as the ring.
	followPayload = 1 << 20
)

// parseSince parses --since.
func parseSince(text string, now time.Time) (time.Time, error) {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		return now.Add(-ago), nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil {
		return t, nil
	}
	t, err := time.ParseInLocation(time.TimeOnly, text, now.Location())
	if err != nil {
		return t, fmt.Errorf("--since %q: it is a time, as 15:04:05 or 2006-01-02T15:04:05Z, or how long ago, as 10s", text)
	}
	y, m, d := now.Date()
	return time.Date(y, m, d, t.Hour(), t.Minute(), t.Second(), t.Nanosecond(), now.Location()), nil
}

// followed shows what is seen of a ring while it is written.
type followed struct {
	*inspection
	out    io.Writer
	drops  uint64
	broken error // the latest fault
}

// following shows the ring in a file as it is written, until a signal, or the file is gone.
func (o *inspection) following(c *cobra.Command, file *os.File, region *io.SectionReader) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	found := contentsOf(region)
	if found.err == nil && found.ring == nil {
		found.err = fmt.Errorf("%w in %s", shm.ErrNoRing, file.Name())
	}
	if found.err != nil {
		return found.err
	}
	ring, err := shm.NewFollower(found.region, uint64(found.region.Size()), o.all)
	if err != nil {
		return fmt.Errorf("%s: %w", file.Name(), err)
	}
	out := report.NewStream(c.OutOrStdout())
	v := &followed{inspection: o, out: out, drops: found.ring.Drops()}
	v.begin(found)
	err = v.follow(ring, file, out, signals)
	ctx, cancel := context.WithTimeout(context.Background(), lastWordsLimit)
	defer cancel()
	if lost := out.Close(ctx); lost != nil && err == nil {
		err = fmt.Errorf("writing what was read: %w", lost)
	}
	return err
}

// followingRun shows the messages of the run that has a control socket, with the times at which the run read them.
func (o *inspection) followingRun(c *cobra.Command, socket string) error {
	ctl := &ctlOptions{socket: socket, by: "inspect"}
	return ctl.follow(c, func(ctx context.Context, run asked, out *output) (control.End, error) {
		v := &followed{inspection: o, out: out}
		options := control.TailOptions{Follow: true, Types: o.typeNames}
		if !o.all && o.since.IsZero() {
			options.From = uint64(run.Kept)
		}
		show := func(m control.Message) error {
			at := run.StartedAt.Add(seconds(m.At))
			if at.Before(o.since) {
				return nil
			}
			return v.message(at, shm.Message{Type: shm.Type(m.TypeID), CRCOK: m.CRCOK, Payload: m.Payload}, m.Size)
		}
		return run.Tail(ctx, options, show, func(n uint64) {
			_ = v.note("missed", fmt.Sprintf("%d messages that the run does not keep", n), "messages", n) // show has its error
		})
	})
}

// follow polls a ring as often as a run does by default.
func (v *followed) follow(ring *shm.Follower, file *os.File, out *report.Stream, signals <-chan os.Signal) error {
	opened, err := file.Stat()
	if err != nil {
		return err
	}
	shown := v.since.IsZero() // whether what is there is
	polls := time.NewTicker(monitor.DefaultPoll)
	defer polls.Stop()
	looks := time.NewTicker(lookPeriod)
	defer looks.Stop()
	for end := ""; ; {
		more := true
		for more && out.Pending() < followPending {
			s, err := ring.Poll(func(m shm.Message) error {
				if !shown || !v.wants(m.Type) {
					return nil
				}
				return v.message(time.Now(), m, len(m.Payload))
			})
			if err != nil {
				return failed(file, err)
			}
			if err := v.saw(s); err != nil {
				return err
			}
			more = s.More
			select {
			case sig := <-signals:
				return &exitError{code: 128 + int(sig.(syscall.Signal))}
			default:
			}
		}
		shown = shown || !more && !time.Now().Before(v.since)
		if end != "" && !more {
			_ = v.note("end", end) // Close has its error
			if v.broken != nil {
				return &exitError{codeBroken, v.broken}
			}
			return nil
		}
		select {
		case sig := <-signals:
			return &exitError{code: 128 + int(sig.(syscall.Signal))}
		case <-polls.C:
		case <-looks.C:
			if end == "" {
				end = whyGone(file, opened) // what is there is read once more
			}
		}
	}
}

// whyGone says what became of a followed file; "" if it is there. A guest's RAM in /proc/PID/fd goes with its process.
func whyGone(file *os.File, opened fs.FileInfo) string {
	now, err := os.Stat(file.Name())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "the file is gone"
	case err == nil && !os.SameFile(opened, now):
		return "another file has taken its place"
	}
	return ""
}

// failed says what kept a followed file from being read.
func failed(file *os.File, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = &exitError{codeBroken, fmt.Errorf("%s has become too short for its ring: %w", file.Name(), err)}
	}
	return err
}

// begin shows the header, as it was when following began.
func (v *followed) begin(c contents) {
	if v.json {
		event := map[string]any{"header": newJSONHeader(c.ring.Header())}
		if c.memory != nil {
			event["memory"] = newJSONMemory(*c.memory)
		}
		_ = v.event("begin", event) // the next message meets its error, too
		return
	}
	if c.memory != nil {
		memoryText(v.out, *c.memory)
	}
	headerText(v.out, c.ring.Header())
}

// saw shows what there is to say beside messages.
func (v *followed) saw(s shm.Sight) (err error) {
	if s.Fault.Kind != shm.NoFault {
		fault := s.Fault
		v.broken = &fault
		err = v.note("fault", fault.Error(), "kind", fault.Kind.String(), "lost", fault.Lost)
	}
	if s.Restarted {
		err = errors.Join(err, v.note("restart", "the ring was begun anew"))
	}
	if s.Missed > 0 {
		err = errors.Join(err, v.note("missed", fmt.Sprintf("%d bytes were written over before they could be read", s.Missed),
			"bytes", s.Missed))
	}
	if s.Drops > v.drops {
		err = errors.Join(err, v.note("drops", fmt.Sprintf("%d messages were dropped, %d in all", s.Drops-v.drops, s.Drops),
			"drops", s.Drops))
	}
	v.drops = s.Drops
	return err
}

// message shows a message that was seen at a time, and whose payload has so many bytes, perhaps more than are there.
func (v *followed) message(at time.Time, m shm.Message, size int) error {
	if !v.json {
		return v.write(fmt.Appendf(nil, "%s  %s\n", at.Format(followTime), messageText(m)))
	}
	b := fmt.Appendf(nil, `{"at": "%s", "type": "%s", "type_id": %d, "size": %d, "payload": "`,
		at.UTC().Format(time.RFC3339Nano), formatName(m.Type), uint32(m.Type), size)
	b = hex.AppendEncode(b, m.Payload[:min(len(m.Payload), followPayload)])
	return v.write(fmt.Appendf(b, `", "crc_ok": %t}`+"\n", m.CRCOK))
}

// followTime is how lines show when inspect saw what they show.
const followTime = "15:04:05.000"

// note shows something that is no message. In JSON it is an event with these fields.
func (v *followed) note(event, text string, fields ...any) error {
	if !v.json {
		return v.write(fmt.Appendf(nil, "%s  --    %s\n", time.Now().Format(followTime), text))
	}
	all := map[string]any{"detail": text}
	for i := 0; i+1 < len(fields); i += 2 {
		all[fields[i].(string)] = fields[i+1]
	}
	return v.event(event, all)
}

// event writes an event's line.
func (v *followed) event(name string, fields map[string]any) error {
	fields["event"], fields["at"] = name, time.Now().UTC().Format(time.RFC3339Nano)
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(fields); err != nil {
		return err
	}
	return v.write(b.Bytes())
}

func (v *followed) write(p []byte) error {
	if _, err := v.out.Write(p); err != nil {
		return fmt.Errorf("writing what was read: %w", err)
	}
	return nil
}
