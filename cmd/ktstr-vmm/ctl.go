package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
)

// Bounds of ctl's waiting.
const (
	askLimit     = 10 * time.Second       // for an answer that does not follow the run
	pendingLimit = 1 << 20                // bytes that wait for who reads our output, before the run's wait too
	gonePeriod   = 200 * time.Millisecond // at which is looked whether there is still somebody
)

// ctlOptions say which run is asked.
type ctlOptions struct {
	id, socket string
	by         string // how the socket was named, if not by --control
}

func ctlCommand() *cobra.Command {
	o := &ctlOptions{}
	c := &cobra.Command{
		Use:   "ctl [ID] ACTION",
		Short: "Look into a run that is going on, or act on it",
		Long: `Look into a run that is going on, or act on it.

The ID is the run's, as ps lists it, or the beginning of it. It may be left out if one run
is going on. A run that has another --control is named by the same flag.`,
		Example: `  ktstr-vmm ctl status
  ktstr-vmm ctl 3f2a tail -f --type STIM
  ktstr-vmm ctl --control /tmp/run.sock stop`,
		ValidArgsFunction: completeRuns,
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) > 0:
				return fmt.Errorf("%q is neither an ID, which has hex digits, nor an action of ctl: %s", args[0], actions(c))
			case o.id != "":
				return fmt.Errorf("ctl %s: what is to be done? One of %s", o.id, actions(c))
			}
			return c.Help()
		},
	}
	c.PersistentFlags().StringVar(&o.socket, "control", "", "the socket of the run, if it is not where it is by default")
	c.PersistentFlags().StringVar(&o.id, idFlag, "", "")
	_ = c.PersistentFlags().MarkHidden(idFlag) // it exists
	c.AddCommand(o.status(), o.tail(), o.console(), o.ring(), o.metrics(), o.registers(), o.shell(), o.signal(), o.stop(),
		o.simple("dump", "Have the guest asked for a dump of its scheduler's state (SysRq-D)", control.Client.Dump),
		o.simple("stall", "Ask the guest to stall its scheduler", control.Client.Stall))
	for _, action := range c.Commands() {
		if action.Args == nil {
			action.Args = noArguments
		}
		if action.ValidArgsFunction == nil {
			action.ValidArgsFunction = cobra.NoFileCompletions
		}
	}
	return c
}

// actions are the names of what ctl can do.
func actions(c *cobra.Command) string {
	var names []string
	for _, action := range c.Commands() {
		names = append(names, action.Name())
	}
	return strings.Join(names, ", ")
}

// idFlag is the flag that stands for an ID before an action: cobra knows no arguments there.
const idFlag = "id"

// withID makes the ID in "ctl ID ACTION" a flag, also for who completes what comes behind it.
func withID(args []string) []string {
	at := slices.Index(args, "ctl")
	completing := at == 1 && strings.HasPrefix(args[0], cobra.ShellCompRequestCmd)
	id := at + 1
	if at != 0 && !completing || len(args) <= id || !control.IsID(args[id]) || completing && id == len(args)-1 {
		return args
	}
	return slices.Replace(slices.Clone(args), id, id+1, "--"+idFlag+"="+args[id])
}

// completeRuns completes IDs of running runs.
func completeRuns(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || c.Flags().Changed(idFlag) || c.Flags().Changed("control") {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	found, _ := control.List(context.Background(), "") // who completes can't be told of errors
	var ids []string
	for _, f := range found {
		text := f.ID
		if f.Status != nil {
			text += "\t" + report.Printable(f.Status.Name+" on "+f.Status.Kernel)
		}
		ids = append(ids, text)
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// asked is the run that is asked.
type asked struct {
	control.Client
	*control.Status
}

// String implements fmt.Stringer.
func (a asked) String() string { return fmt.Sprintf("the run %s (%s)", a.ID, a.Name) }

// find finds the run.
func (o *ctlOptions) find(ctx context.Context) (asked, error) {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	if o.socket != "" {
		if o.id != "" {
			return asked{}, fmt.Errorf("both an ID, %s, and --control %q were given", o.id, o.socket)
		}
		client := control.Client{Path: o.socket}
		status, err := client.Status(ctx)
		if err != nil {
			return asked{}, fmt.Errorf("%s %q: %w", cmp.Or(o.by, "--control"), o.socket, said(err))
		}
		return asked{client, status}, nil
	}
	found, err := control.List(ctx, o.id)
	switch {
	case err != nil:
		return asked{}, err
	case len(found) == 0 && o.id == "":
		return asked{}, errors.New("no run of this user is going on")
	case len(found) == 0:
		return asked{}, fmt.Errorf("no run has an ID that begins with %q; ktstr-vmm ps lists those that are going on", o.id)
	case len(found) > 1:
		return asked{}, fmt.Errorf("say which run is meant, as in ktstr-vmm ctl ID status: %s", names(found))
	case found[0].Err != nil:
		return asked{}, fmt.Errorf("the run %s: %w", found[0].ID, said(found[0].Err))
	}
	return asked{control.Client{Path: found[0].Path}, found[0].Status}, nil
}

// names says which runs there are, in a line.
func names(found []control.Found) string {
	const most = 8
	var all []string
	for _, f := range found[:min(len(found), most)] {
		name := f.ID
		if f.Status != nil {
			name += fmt.Sprintf(" (%s on %s)", f.Status.Name, f.Status.Kernel)
		}
		all = append(all, name)
	}
	if more := len(found) - most; more > 0 {
		all = append(all, fmt.Sprintf("%d more", more))
	}
	return strings.Join(all, ", ")
}

// said is an error in the words of who uses ctl.
func said(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("it did not answer in time: its process may be stopped, or the run not have begun")
	}
	return err
}

// ask finds the run and does something with it, for a time.
func (o *ctlOptions) ask(c *cobra.Command, do func(context.Context, asked) error) error {
	run, err := o.find(c.Context())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(c.Context(), askLimit)
	defer cancel()
	return run.failed(do(ctx, run))
}

// failed says of which run an error is.
func (a asked) failed(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%v: %w", a, said(err))
}

// simple is an action that has neither arguments nor output.
func (o *ctlOptions) simple(name, short string, do func(control.Client, context.Context) error) *cobra.Command {
	return &cobra.Command{Use: name, Short: short, RunE: func(c *cobra.Command, _ []string) error {
		return o.ask(c, func(ctx context.Context, run asked) error { return do(run.Client, ctx) })
	}}
}

func (o *ctlOptions) signal() *cobra.Command {
	return &cobra.Command{
		Use:   "signal SLOT VALUE",
		Short: "Set one of the ring's signal slots: 0, the host's, or 1, the guest's",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("signal takes a slot and a value, %d arguments were given", len(args))
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			slot, err := strconv.ParseUint(args[0], 0, 8)
			if err != nil {
				return fmt.Errorf("signal: the slot %q is neither 0 nor 1", args[0])
			}
			value, err := strconv.ParseUint(args[1], 0, 8)
			if err != nil {
				return fmt.Errorf("signal: the value %q is no number of 0 to 255", args[1])
			}
			return o.ask(c, func(ctx context.Context, run asked) error { return run.Signal(ctx, int(slot), byte(value)) })
		},
	}
}

func (o *ctlOptions) stop() *cobra.Command {
	var now bool
	c := &cobra.Command{
		Use:   "stop",
		Short: "End the run, as a SIGTERM does: its outcome is interrupted, its exit code 143",
		RunE: func(c *cobra.Command, _ []string) error {
			return o.ask(c, func(ctx context.Context, run asked) error { return run.Stop(ctx, now) })
		},
	}
	c.Flags().BoolVar(&now, "now", false, "do not ask the guest to stop before")
	return c
}

func (o *ctlOptions) metrics() *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print the run's metrics in Prometheus's text format",
		RunE: func(c *cobra.Command, _ []string) error {
			return o.ask(c, func(ctx context.Context, run asked) error {
				text, err := run.Metrics(ctx)
				if err != nil {
					return err
				}
				if isTerminal(c.OutOrStdout()) {
					text = report.PrintableLines(text)
				}
				_, err = io.WriteString(c.OutOrStdout(), text)
				return err
			})
		},
	}
}

func (o *ctlOptions) status() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:   "status",
		Short: "Say what the run does",
		RunE: func(c *cobra.Command, _ []string) error {
			run, err := o.find(c.Context())
			if err != nil {
				return err
			}
			if asJSON {
				return report.EncodeJSON(c.OutOrStdout(), run.Status)
			}
			return printStatus(c.OutOrStdout(), run.Status)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

func printStatus(w io.Writer, s *control.Status) error {
	var b strings.Builder
	row := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-11s %s\n", name, report.Printable(fmt.Sprintf(format, args...)))
	}
	b.WriteString(report.Printable(s.ID+": "+s.Name) + "\n")
	row("kernel", "%s", s.Kernel)
	row("machine", "%s on %s", s.Arch, s.Accelerator)
	row("process", "%d, version %s", s.PID, s.Version)
	row("phase", "%s, after %v of %v", s.Phase, seconds(s.Elapsed).Round(time.Millisecond), seconds(s.Timeout))
	var types []string
	for _, name := range slices.Sorted(maps.Keys(s.ByType)) {
		types = append(types, fmt.Sprintf("%s %d", name, s.ByType[name]))
	}
	kinds := ""
	if len(types) > 0 {
		kinds = " (" + strings.Join(types, ", ") + ")"
	}
	row("messages", "%d%s, %d bytes", s.Messages, kinds, s.Bytes)
	if l := s.LastStimulus; l != nil {
		payload := l.Encode()
		row("last STIM", "%s, read at %.3fs", report.Describe(shm.Message{Type: shm.Stimulus, Payload: payload[:]}), l.At)
	}
	row("drops", "%d", s.Drops)
	if s.CRCErrors+s.Faults > 0 {
		row("faults", "%d, and %d wrong CRCs", s.Faults, s.CRCErrors)
	}
	row("ring", "%d of %d bytes wait to be read", s.Used, s.Capacity)
	row("console", "%d bytes", s.ConsoleBytes)
	_, err := io.WriteString(w, b.String())
	return err
}

func (o *ctlOptions) ring() *cobra.Command {
	return &cobra.Command{
		Use:   "ring",
		Short: "Write the ring as it is now to stdout, for inspect",
		RunE: func(c *cobra.Command, _ []string) error {
			if isTerminal(c.OutOrStdout()) {
				return errors.New("ring: it is nothing for a terminal: ktstr-vmm ctl ring > FILE")
			}
			return o.follow(c, func(ctx context.Context, run asked, out *output) (control.End, error) {
				return control.End{}, run.Ring(ctx, out)
			})
		},
	}
}

func (o *ctlOptions) console() *cobra.Command {
	var follow bool
	c := &cobra.Command{
		Use:   "console",
		Short: "Print what the run keeps of the guest's console, its last 64 KiB",
		RunE: func(c *cobra.Command, _ []string) error {
			return o.follow(c, func(ctx context.Context, run asked, out *output) (control.End, error) {
				next := uint64(0)
				to := io.Writer(out)
				if isTerminal(c.OutOrStdout()) {
					visible := report.NewVisible(out)
					defer func() { _ = visible.Flush() }() // out keeps its error
					to = visible
				}
				return run.Console(ctx, 0, follow, func(p []byte, at uint64) error {
					if next > 0 && at > next {
						fmt.Fprintf(c.ErrOrStderr(), "ktstr-vmm: %d bytes of the console came too fast, and are left out\n", at-next)
					}
					next = at + uint64(len(p))
					_, err := to.Write(p)
					return err
				})
			})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on to the run's end")
	return c
}

func (o *ctlOptions) tail() *cobra.Command {
	var options control.TailOptions
	var asJSON bool
	c := &cobra.Command{
		Use:   "tail",
		Short: "Print the guest's messages",
		Long: `Print the guest's messages: those that the run keeps, and with --follow those to come.

A run does not keep what guests write in bulk: STDO, STDE, RAWO, PMET, SXDP, SXOU and types
that it does not know. With --follow some of those to come are shown, more if --type names
them; the others are counted. Of messages that a run keeps, none is left out.`,
		RunE: func(c *cobra.Command, _ []string) error {
			for _, name := range options.Types {
				if _, err := shm.ParseType(name); err != nil {
					return fmt.Errorf("--type: %w", err)
				}
			}
			return o.follow(c, func(ctx context.Context, run asked, out *output) (control.End, error) {
				show, missed := showLine, missedLine
				if asJSON {
					show, missed = showJSON, missedJSON
				}
				return run.Tail(ctx, options, func(m control.Message) error { return show(out, m) },
					func(n uint64) { missed(out, n) })
			})
		},
	}
	f := c.Flags()
	f.SortFlags = false
	f.BoolVarP(&options.Follow, "follow", "f", false, "go on to the run's end")
	f.StringSliceVar(&options.Types, "type", nil, "only messages of this type, such as STIM; more than one can be given")
	f.Uint64Var(&options.From, "from", 0, "the number of the first message, as it is in JSON")
	f.BoolVar(&asJSON, "json", false, "print JSON, an object a line")
	var types []string
	for _, t := range shm.Types() {
		types = append(types, t.String())
	}
	mustComplete(c, "type", completeList(types))
	mustComplete(c, "from", cobra.NoFileCompletions)
	return c
}

// showLine shows a message as the live view of a run does.
func showLine(w io.Writer, m control.Message) error {
	line := report.Line(seconds(m.At), shm.Message{Type: shm.Type(m.TypeID), CRCOK: m.CRCOK, Payload: m.Payload})
	if m.Size > len(m.Payload) {
		line = fmt.Sprintf("%s  (the first %d of %d bytes)\n", strings.TrimSuffix(line, "\n"), len(m.Payload), m.Size)
	}
	_, err := io.WriteString(w, line)
	return err
}

func missedLine(w io.Writer, n uint64) { _, _ = io.WriteString(w, report.MoreLine(fmt.Sprint(n))) }

func showJSON(w io.Writer, m control.Message) error {
	text, err := json.Marshal(m)
	if err != nil {
		return err
	}
	_, err = w.Write(append(report.PrintableJSON(text), '\n'))
	return err
}

func missedJSON(w io.Writer, n uint64) { fmt.Fprintf(w, "{\"omitted\":%d}\n", n) }

// follow passes on what a run says, as long as somebody reads it, nobody presses Ctrl-C and the run lasts.
func (o *ctlOptions) follow(c *cobra.Command, do func(context.Context, asked, *output) (control.End, error)) error {
	ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	run, err := o.find(ctx)
	if err != nil && ctx.Err() != nil {
		return nil
	} else if err != nil {
		return err
	}
	out := &output{Stream: report.NewStream(c.OutOrStdout()), ctx: ctx}
	ctx, gone := context.WithCancel(ctx)
	var watching sync.WaitGroup
	watching.Go(func() { whileRead(ctx, c.OutOrStdout(), gone) })
	end, err := do(ctx, run, out)
	left := ctx.Err() != nil
	gone()
	watching.Wait()
	if closeErr := out.Close(out.ctx); err == nil {
		err = closeErr
	}
	switch {
	case left, errors.Is(err, syscall.EPIPE): // nobody wants more of it
		return nil
	case err != nil:
		return run.failed(err)
	case end.Result != nil:
		say(c.ErrOrStderr(), fmt.Sprintf("ktstr-vmm: %s is over: %s\n", report.Printable(run.String()),
			report.Printable(end.Result.Outcome+": "+end.Result.Reason)))
	}
	return nil
}

// output is a stream that waits for its reader, but not after ctx's end.
type output struct {
	*report.Stream
	ctx context.Context
}

// Write implements io.Writer.
func (w *output) Write(p []byte) (int, error) {
	n, err := w.Stream.Write(p)
	if err == nil && w.Pending() > pendingLimit {
		err = w.Flush(w.ctx)
	}
	return n, err
}

// whileRead calls gone when w is a pipe that nobody will read any more.
func whileRead(ctx context.Context, w io.Writer, gone func()) {
	f, ok := w.(*os.File)
	if !ok {
		return
	}
	ticks := time.NewTicker(gonePeriod)
	defer ticks.Stop()
	for {
		poll := []unix.PollFd{{Fd: int32(f.Fd())}} // POLLERR is not asked for, it comes: poll(2)
		if _, err := unix.Poll(poll, 0); err == nil && poll[0].Revents&unix.POLLERR != 0 {
			gone()
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
	}
}
