package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
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
)

// run runs a guest as the flags say and shows it; its error carries the exit code.
func (o *options) run(c *cobra.Command, cfg run.Config) error {
	if err := o.checkMemory(cfg.VM.Kernel.Board()); err != nil {
		return err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(signals)

	log := o.logger(c.ErrOrStderr())
	var file *reportFile
	if o.report != "" && o.report != "-" {
		var err error
		if file, err = openReport(o.report); err != nil {
			return fmt.Errorf("--report %q: %w", o.report, err)
		}
		defer file.discard()
	}

	var server *metricsServer
	cfg.Version = version()
	if o.metricsListen != "" {
		registry := prometheus.NewRegistry()
		var err error
		if server, err = listenMetrics(o.metricsListen, registry); err != nil {
			return fmt.Errorf("--metrics-listen %q: %w", o.metricsListen, err)
		}
		defer server.close()
		cfg.Registry = registry
		cfg.OnStart = func() {
			server.serve()
			log.Info("metrics are served", zap.String("url", server.url()))
		}
	}

	backend, note := accel.Choose(accel.Mode(o.accel), accel.Guest{Board: cfg.VM.Kernel.Board(), KernelMode: o.linux})
	if note != "" {
		log.Info(note)
	}
	cfg.VM.Backend = backend

	console, err := o.openConsole(c.OutOrStdout(), c.ErrOrStderr())
	if err != nil {
		return err
	}
	cfg.VM.Console = console.writer()

	cfg.VM.Memory, cfg.VM.Reserved, cfg.VM.CPUs = uint64(o.memory), uint64(o.shmSize), o.cpus
	cfg.Timeout, cfg.Grace, cfg.Poll = o.timeout, o.grace, o.poll
	if o.grace == 0 {
		cfg.Grace = -1
	}
	cfg.Signals = signals
	cfg.Log = log
	v := o.view(c)
	cfg.OnMessage = v.message

	result := run.Run(c.Context(), cfg)
	if err := console.close(); err != nil {
		log.Warn("the console was not written to its end", zap.Error(err))
	}
	if err := v.finish(result); err != nil {
		log.Warn("the output was not read to its end", zap.Error(err))
	}
	exit := &exitError{code: result.ExitCode}
	if result.Outcome == run.Failed {
		exit.err = errors.New(result.Reason + advice(result.Err))
	}
	if err := o.writeReport(c, file, result); err != nil {
		exit = &exitError{code: run.CodeFailed, err: fmt.Errorf("--report %q: %w", o.report, err)}
	}
	if server != nil && server.serving() && o.metricsLinger > 0 {
		log.Info("metrics linger", zap.Duration("for", o.metricsLinger))
		select {
		case <-signals:
		case <-time.After(o.metricsLinger):
		}
	}
	if exit.code == 0 && exit.err == nil {
		return nil
	}
	return exit
}

// advice says which flag may help where the host could not run the guest.
func advice(err error) string {
	switch {
	case errors.Is(err, vm.ErrRoom) && errors.Is(err, vm.ErrSetup):
		return "; try less --memory"
	case errors.Is(err, vm.ErrRoom):
		return "; try more --memory"
	case errors.Is(err, kvm.ErrNoKVM), errors.Is(err, kvm.ErrPermission), errors.Is(err, kvm.ErrBusy):
		return "; or let the emulator run the guest: --accel emulator"
	}
	return ""
}

// view is what the user gets to see. Where the report is what stdout is for, live messages make
// way.
func (o *options) view(c *cobra.Command) view {
	switch {
	case o.linux:
		return newCommandView(c.OutOrStdout(), c.ErrOrStderr(), !o.verbose)
	case o.report == "-" && o.reportFormat != "text":
		return newLiveView(c.ErrOrStderr(), false)
	}
	return newLiveView(c.OutOrStdout(), true)
}

// writeReport puts the report where --report wants it; the text of stdout is there already.
func (o *options) writeReport(c *cobra.Command, file *reportFile, r *run.Result) error {
	write := func(w io.Writer) error {
		switch o.reportFormat {
		case "json":
			return report.JSON(w, version(), r)
		case "junit":
			return report.JUnit(w, r)
		}
		return report.Text(w, r, false)
	}
	switch {
	case file != nil:
		if err := write(file); err != nil {
			return err
		}
		return file.commit()
	case o.report == "-" && (o.linux || o.reportFormat != "text"):
		out := report.NewStream(c.OutOrStdout())
		return errors.Join(write(out), out.Close(flushLimit))
	}
	return nil
}

func (o *options) logger(w io.Writer) *zap.Logger {
	level, err := zapcore.ParseLevel(o.logLevel)
	if err != nil {
		level = zapcore.InfoLevel // check has refused it before
	}
	cfg := zapcore.EncoderConfig{
		TimeKey: "time", LevelKey: "level", MessageKey: "msg",
		EncodeTime:     zapcore.RFC3339NanoTimeEncoder,
		EncodeLevel:    zapcore.LowercaseLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder,
	}
	encoder := zapcore.NewConsoleEncoder(cfg)
	if o.logFormat == "json" {
		encoder = zapcore.NewJSONEncoder(cfg)
	}
	return zap.New(zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level))
}
