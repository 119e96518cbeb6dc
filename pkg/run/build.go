package run

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/monitor"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// built is what the building of a machine comes to.
type built struct {
	parts
	cfg  vm.Config
	ring vm.Span
	host Host
	area vm.Span // for calls
	err  error
}

// awaitBuild builds the machine. A deadline, a signal or the context end the wait, and with it the run: what
// is built after all is taken down behind its back. The files that a machine is made of may lie where nobody
// answers, and no system call can be taken back.
func (r *run) awaitBuild(ctx context.Context) error {
	hard := time.NewTimer(r.cfg.Timeout - r.since())
	defer hard.Stop()
	done := make(chan built, 1)
	go func() { done <- r.build() }()
	select {
	case b := <-done:
		r.parts = b.parts
		r.result.Host = b.host
		r.result.describe(b.cfg)
		r.result.RingBase = b.ring.Base
		if b.err != nil || r.cfg.Registry == nil {
			return b.err
		}
		return r.register(b.cfg)
	case <-hard.C:
		r.timedOut = fmt.Sprintf("the hard deadline passed after %v, and the machine was not built yet", r.cfg.Timeout)
	case r.signal = <-r.cfg.Signals:
	case <-ctx.Done():
		r.signal = syscall.SIGINT
	}
	go func() {
		if b := <-done; b.machine != nil {
			_ = b.machine.Close() // there is nobody left to tell
		}
	}()
	return nil
}

// build makes the machine with its ring in place, and the monitor. It shares nothing with a run that does not
// wait for it any more.
func (r *run) build() (b built) {
	b.cfg, b.host = r.cfg.VM, readHost()
	if r.cfg.Prepare != nil {
		var files io.Closer
		if b.cfg, files, b.err = r.cfg.Prepare(); b.err != nil {
			return b
		}
		if files != nil {
			defer files.Close()
		}
	}
	if b.cfg.Kernel == nil {
		b.err = fmt.Errorf("%w: no kernel given", vm.ErrConfig)
		return b
	}
	cfg := b.cfg
	if r.cfg.Calls != nil {
		cfg.Reserved = cmp.Or(cfg.Reserved, vm.DefaultReserved) + call.Size
	}
	layout, err := cfg.Kernel.Board().Layout(cfg.Memory, cfg.Reserved)
	if err != nil {
		b.err = err
		return b
	}
	b.ring = layout.Reserved
	area := ""
	if r.cfg.Calls != nil {
		area = b.withCalls(layout)
	}
	cfg.Cmdline = shm.Params{Base: uint64(b.ring.Base), Size: b.ring.Size}.String() + " " + area + cfg.Cmdline
	console := []io.Writer{r.console, r.panic}
	if cfg.Console != nil {
		console = append(console, cfg.Console)
	}
	cfg.Console = io.MultiWriter(console...)
	if b.machine, b.err = r.cfg.NewMachine(cfg); b.err != nil {
		b.machine = nil
		return b
	}
	if r.cfg.Calls != nil {
		b.err = b.answerCalls(r)
	}
	if b.err == nil {
		b.err = b.watchRing(r)
	}
	if b.err != nil {
		b.err = errors.Join(b.err, b.machine.Close())
		b.machine = nil
	}
	return b
}

// watchRing writes the ring's header and makes the monitor over it.
func (b *built) watchRing(r *run) error {
	region, err := b.machine.Memory().Window(b.ring.Base, b.ring.Size)
	if err != nil {
		return err
	}
	if err := shm.Init(region); err != nil {
		return err
	}
	reader, err := shm.NewReader(region, shm.Limits{})
	if err != nil {
		return err
	}
	if b.control, err = shm.NewControl(region); err != nil {
		return err
	}
	c := &collector{r: r.result, scheduler: r.scheduler, history: r.history, since: r.since}
	mux := monitor.NewMux()
	if r.cfg.OnMessage != nil {
		mux.HandleAll(monitor.HandlerFunc(func(m shm.Message) monitor.Verdict { return r.cfg.OnMessage(r.since(), m) }))
	}
	mux.HandleAll(monitor.HandlerFunc(r.history.message))
	c.register(mux)
	r.keepOutput(mux)
	r.activity.register(mux)
	if r.cfg.Handlers != nil {
		r.cfg.Handlers(mux)
	}
	b.monitor = monitor.New(monitor.Config{Reader: reader, Mux: mux, Poll: r.cfg.Poll,
		Bell: b.machine.Bell(), OnBell: b.onBell(), OnFault: c.fault, OnDrops: r.history.drops})
	return nil
}

// onBell is what else hears the guest's doorbell: who answers its calls.
func (b *built) onBell() func() {
	if b.calls == nil {
		return nil
	}
	return b.calls.Wake
}

// register shows the run to Prometheus.
func (r *run) register(cfg vm.Config) error {
	r.metrics = newMetrics(r.cfg, r.result, r.machine)
	collectors := []prometheus.Collector{r.monitor, r.metrics, monitor.BuildInfo(r.cfg.Version)}
	if r.cfg.Symbols != nil && r.cfg.CPUMetrics {
		r.cpuMetrics = newCPUMetrics(r.result.Topology.CPUs())
		collectors = append(collectors, r.cpuMetrics)
	}
	for _, collector := range collectors {
		if err := r.cfg.Registry.Register(collector); err != nil {
			return errors.Join(fmt.Errorf("registering metrics: %w", err), r.machine.Close())
		}
	}
	return nil
}
