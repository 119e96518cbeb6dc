package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/ktstr/ktstr-vmm/pkg/accel"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/kvm"
	"github.com/ktstr/ktstr-vmm/pkg/vm/qemu"
)

// lastWordsLimit is how long a reader of our output can hold up the program's end beside what a run waits for
// it: for the summary, the report and the error message.
const lastWordsLimit = time.Second

// filesLimit is how long the report's and the ring's files can hold it up: a disk may be stuck, or a pipe's reader.
// No other reader takes anything of that: a file is there whoever does not read the rest.
const filesLimit = 5 * time.Second

// session is one run of a guest as the flags say. All that it writes to stdout and stderr goes through
// streams: a reader that is stuck holds up nothing.
type session struct {
	*options
	stdout, stderr *report.Stream
	stdoutFile     io.Writer // what is behind them, to ask whether it is a terminal
	stderrFile     io.Writer
	log            *zap.Logger
	signals        chan os.Signal
	server         *metricsServer
	raw            atomic.Bool // whether the terminal is
	view           view
	reportFile     chan *outputFile // what prepare opened, each as soon as it is open
	ringFile       chan *outputFile
	consoles       chan *console
	guestEnded     time.Time // when the flush of its output began
	id             string
	registry       *prometheus.Registry // of the run
	sums           sums
	control        controlSocket
	status         *statusLine   // nil: there is none
	statusStop     chan struct{} // ends its lines in the log; nil: there are none
	statusEnded    chan struct{}
}

// machine describes a machine as far as the kernel goes, and what is to be closed when it is built. What it has to
// say meanwhile it says in lines.
type machine func(say func(format string, args ...any)) (vm.Config, io.Closer, error)

// run runs a guest and shows it; its error carries the exit code.
func (o *options) run(c *cobra.Command, cfg run.Config, m machine) error {
	s := &session{
		options:    o,
		stdoutFile: c.OutOrStdout(), stderrFile: c.ErrOrStderr(),
		signals:    make(chan os.Signal, 4),
		reportFile: make(chan *outputFile, 1),
		ringFile:   make(chan *outputFile, 1),
		consoles:   make(chan *console, 1),
	}
	s.openStreams()
	signal.Notify(s.signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(s.signals)
	s.log = o.logger(s.stderr)
	s.view = s.newView()
	cfg.Version, cfg.Log, cfg.Signals = version(), s.log, s.signals
	cfg.Timeout, cfg.Grace, cfg.Poll = o.Timeout, o.Grace, o.Poll
	if o.Grace == 0 {
		cfg.Grace = -1
	}
	cfg.KeepRing = o.Ring != ""
	cfg.OnMessage = s.view.message
	cfg.OnLive = s.startStatus
	cfg.Flush = func(ctx context.Context) uint64 {
		s.guestEnded = time.Now()
		return s.view.flush(ctx)
	}
	cfg.VM.Memory, cfg.VM.Reserved = uint64(o.Memory), uint64(o.ShmSize)
	cfg.VM.Topology, cfg.VM.Pin = o.Topology, o.Pinned
	cfg.Prepare = func() (vm.Config, io.Closer, error) { return s.prepare(m) }
	cfg.Name, cfg.Suite, cfg.Invocation = cmp.Or(s.Name, cfg.Name), s.Suite, invocation()
	s.id, s.registry = run.NewID(), prometheus.NewRegistry()
	cfg.ID, cfg.Registry = s.id, s.registry
	s.sums.prepare(s, &cfg)
	s.control.prepare(&cfg)
	if err := s.serveMetrics(&cfg); err != nil {
		s.fail(err.Error())
		s.close(lastWordsLimit)
		return &exitError{code: run.CodeFailed}
	}
	giveBack := s.connect(&cfg)
	defer giveBack()
	result := run.Run(c.Context(), cfg)
	giveBack()
	served := s.control.close()
	s.sums.publish(s, result)
	exit := s.end(result)
	served()
	s.linger()
	if exit == 0 {
		return nil
	}
	return &exitError{code: exit}
}

// openStreams makes the streams, above the status line if there is one.
func (s *session) openStreams() {
	stdout, stderr := s.toStdout(), s.lines(s.stderrFile)
	if s.wantsStatusLine(s.stdoutFile, s.stderrFile) {
		stdout, stderr = s.stdoutFile, s.stderrFile
		s.status = newStatusLine(stderr.(*os.File))
		if sameFile(stdout, stderr) {
			stdout = s.status.above(stdout)
		}
		stderr = s.status.above(stderr)
	}
	s.stdout, s.stderr = report.NewStream(stdout), report.NewStream(stderr)
}

// prepare opens what is to be written, and makes the machine's configuration whole. It may wait for a file
// system, or for who opens a pipe's other end.
func (s *session) prepare(m machine) (cfg vm.Config, opened io.Closer, err error) {
	console, err := s.open()
	if err != nil {
		return cfg, nil, err
	}
	say := func(format string, args ...any) {
		if !s.Quiet {
			fmt.Fprintf(s.stderr, "ktstr-vmm: "+format+"\n", args...)
		}
	}
	if cfg, opened, err = m(say); err != nil {
		return cfg, nil, err
	}
	board := cfg.Kernel.Board()
	if err := s.CheckMemory(board); err != nil {
		return cfg, nil, errors.Join(err, opened.Close())
	}
	backend, note := accel.Choose(accel.Mode(s.Accel), accel.Guest{Board: board, Linux: s.linux})
	if note != "" {
		s.log.Info(note)
	}
	s.sayPinned(s.log, backend)
	cfg.Backend, cfg.Console = backend, console.writer()
	s.sums.arch, s.sums.accelerator = board.Arch(), backend.Name()
	cfg.Memory, cfg.Reserved, cfg.Topology, cfg.Pin = uint64(s.Memory), uint64(s.ShmSize), s.Topology, s.Pinned
	return cfg, opened, nil
}

// open opens what is written beside the output. Each may wait for ever, so end takes what there is.
func (s *session) open() (*console, error) {
	if s.wantsReportFile() {
		file, err := openOutput(s.Report)
		if err != nil {
			return nil, fmt.Errorf("--report %q: %w", s.Report, err)
		}
		s.reportFile <- file
	}
	if s.Ring != "" {
		file, err := openOutput(s.Ring)
		if err != nil {
			return nil, fmt.Errorf("--ring %q: %w", s.Ring, err)
		}
		s.ringFile <- file
	}
	console, err := s.openConsole(s.stdout, s.stderr)
	if err != nil {
		return nil, err
	}
	s.consoles <- console
	return console, s.control.open(s)
}

func (s *session) wantsReportFile() bool { return s.Report != "" && s.Report != "-" }

// taken is what was put into a channel, or nothing.
func taken[T any](c chan T) (v T) {
	select {
	case v = <-c:
	default:
	}
	return v
}

func (s *session) serveMetrics(cfg *run.Config) error {
	if s.MetricsListen == "" {
		return nil
	}
	server, err := listenMetrics(s.MetricsListen, s.registry)
	if err != nil {
		return fmt.Errorf("--metrics-listen %q: %w", s.MetricsListen, err)
	}
	s.server = server
	cfg.CPUMetrics = true
	started := cfg.OnStart
	cfg.OnStart = func() {
		server.serve()
		s.log.Info("metrics are served", zap.String("url", server.url()))
		if beyondLoopback(server.listener.Addr()) {
			s.log.Warn("whoever reaches the address can read the metrics: use 127.0.0.1, or ktstr-vmm exporter with a password")
		}
		if started != nil {
			started()
		}
	}
	return nil
}

// end shows and writes down what became of the run, and returns the exit code. Whoever has to read that has what is
// left of a run's time for slow readers, and lastWordsLimit at least; files have filesLimit.
func (s *session) end(r *run.Result) int {
	left := run.DefaultFlushLimit
	if !s.guestEnded.IsZero() {
		left -= time.Since(s.guestEnded)
	}
	ctx, cancel := context.WithTimeout(context.Background(), max(left, lastWordsLimit))
	defer cancel()
	s.endStatus()
	code := r.ExitCode
	if console := taken(s.consoles); console != nil {
		if err := console.close(ctx); err != nil {
			s.log.Warn("the console was not written to its end", zap.Error(err))
		}
	}
	s.view.summary(r)
	if r.Outcome == run.Failed {
		s.fail(r.Reason + advice(r.Err))
	}
	file := taken(s.reportFile)
	if file == nil && s.wantsReportFile() && r.Outcome != run.Failed {
		s.fail(fmt.Sprintf("--report %q: the run ended before it was open", s.Report))
	}
	files, written := context.WithTimeout(context.Background(), filesLimit)
	defer written()
	ringFile := taken(s.ringFile)
	ring := by(files, func() error { return writeRing(ringFile, r) })
	err := by(files, func() error { return s.writeReport(file, r) })()
	if err := ring(); err != nil {
		code = run.CodeFailed
		s.fail(fmt.Sprintf("--ring %q: %v", s.Ring, err))
	}
	last, said := atLeast(ctx, lastWordsLimit)
	defer said()
	if lost := s.stdout.Close(last); s.Report == "-" {
		err = errors.Join(err, lost)
	}
	if err != nil {
		code = run.CodeFailed
		s.fail(fmt.Sprintf("--report %q: %v", s.Report, err))
	}
	_ = s.stderr.Close(last) // there is no place left to say it
	return code
}

// atLeast returns a context that ends when another one does, but not before some time has passed.
func atLeast(ctx context.Context, some time.Duration) (context.Context, context.CancelFunc) {
	end := time.Now().Add(some)
	if at, ok := ctx.Deadline(); ok && at.After(end) {
		end = at
	}
	return context.WithDeadline(context.Background(), end)
}

// close ends the streams of a session that ran nothing.
func (s *session) close(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	for _, stream := range []*report.Stream{s.stdout, s.stderr} {
		_ = stream.Close(ctx) // there is no place left to say it
	}
}

// fail says what went wrong, in a line.
func (s *session) fail(text string) { fmt.Fprintf(s.stderr, "ktstr-vmm: %s\n", report.Printable(text)) }

// linger serves the metrics of a run that is over for as long as was asked, or until a signal.
func (s *session) linger() {
	if s.server == nil {
		return
	}
	if s.server.serving() && s.MetricsLinger > 0 {
		select {
		case <-s.signals:
		case <-time.After(s.MetricsLinger):
		}
	}
	s.server.close()
}

// advice says which flag may help where the host could not run the guest.
func advice(err error) string {
	switch {
	case errors.Is(err, vm.ErrRoom) && errors.Is(err, vm.ErrSetup):
		return "; try less --memory"
	case errors.Is(err, vm.ErrRoom):
		return "; try more --memory"
	case errors.Is(err, qemu.ErrTopology):
		return ": --accel kvm"
	case errors.Is(err, qemu.ErrNotInstalled), errors.Is(err, qemu.ErrTooOld): // it says what to do
	case errors.Is(err, kvm.ErrNoKVM), errors.Is(err, kvm.ErrPermission), errors.Is(err, kvm.ErrBusy),
		errors.Is(err, kvm.ErrCapability):
		return "; or let the emulator run the guest: --accel emulator"
	case errors.Is(err, kvm.ErrIncoherent):
		return "; let the emulator run the guest: --accel emulator; or, if the kernel has no CONFIG_STRICT_DEVMEM, make " +
			"the ring cacheable: --shm-reserve cacheable"
	}
	return ""
}

// newView is what the user gets to see. Where the report is what stdout is for, live messages make
// way.
func (s *session) newView() view {
	switch {
	case s.linux:
		return newCommandView(s.stdout, s.stderr, !s.Verbose, wantsColour(s.stderrFile))
	case s.Quiet:
		return quietView{s.stderr, wantsColour(s.stderrFile)}
	case s.Report == "-" && s.ReportFormat != "text":
		return newLiveView(s.stderr, false, false)
	}
	return newLiveView(s.stdout, true, wantsColour(s.stdoutFile))
}

// by begins what may wait for ever, because a pipe's reader or a disk may be stuck, and returns what waits for it as
// long as ctx allows.
func by(ctx context.Context, do func() error) (wait func() error) {
	done := make(chan error, 1)
	go func() { done <- do() }()
	return func() error {
		select {
		case err := <-done:
			return err
		case <-ctx.Done():
		}
		select {
		case err := <-done: // it was in time
			return err
		default:
			return fmt.Errorf("%w: nobody took it in time", io.ErrShortWrite)
		}
	}
}

// writeRing writes the ring where --ring wants it, with holes where the guest wrote nothing.
func writeRing(file *outputFile, r *run.Result) error {
	if file == nil {
		return nil
	}
	defer file.discard()
	image := r.RingImage
	if image == nil {
		return nil // there was no machine, as the outcome says
	}
	for _, c := range image.Chunks {
		if _, err := file.WriteAt(c.Data, int64(c.Offset)); err != nil {
			return err
		}
	}
	if err := file.Truncate(int64(image.Size)); err != nil {
		return err
	}
	return file.commit()
}

// writeReport puts the report where --report wants it; demo's text is on stdout already, unless it is quiet.
func (s *session) writeReport(file *outputFile, r *run.Result) error {
	write := func(w io.Writer) error {
		switch s.ReportFormat {
		case "json":
			return report.JSON(w, version(), r)
		case "junit":
			return report.JUnit(w, r)
		}
		return report.Text(w, r, false)
	}
	switch {
	case file != nil:
		defer file.discard()
		if err := write(file); err != nil {
			return err
		}
		return file.commit()
	case s.Report == "-" && (s.linux || s.Quiet || s.ReportFormat != "text"):
		return write(s.stdout)
	}
	return nil
}

func (o *options) logger(w io.Writer) *zap.Logger {
	level, err := zapcore.ParseLevel(o.LogLevel)
	if err != nil {
		level = zapcore.InfoLevel // check has refused it before
	}
	if o.Quiet && !o.Lookup("log-level").Changed {
		level = zapcore.WarnLevel
	}
	cfg := zapcore.EncoderConfig{
		TimeKey: "time", LevelKey: "level", MessageKey: "msg",
		EncodeTime:     zapcore.RFC3339NanoTimeEncoder,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder,
	}
	encoder := zapcore.NewConsoleEncoder(cfg)
	if o.LogFormat == "json" {
		encoder = zapcore.NewJSONEncoder(cfg)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level))
}
