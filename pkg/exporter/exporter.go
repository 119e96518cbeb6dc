package exporter

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"github.com/ktstr/ktstr-vmm/pkg/monitor"
)

// Bounds of what runs and scrapers can take of an exporter.
const (
	maxConns    = 1024
	maxScrapes  = 8               // at the same time
	frameLimit  = 5 * time.Second // for the first message, and for a message that has begun
	scanPeriod  = time.Second     // of the spool folder, and of runs without a connection
	spoolPrefix = "."             // of files that are not whole yet
)

// ErrRunning means that another exporter has the socket or the state.
var ErrRunning = errors.New("another exporter has it")

// Config describes an exporter.
type Config struct {
	Socket  string // where runs find it; its folder is made if need be
	State   string // a file, the same
	Limit   int    // label sets; 0: tally.DefaultLimit
	Version string // of the program, for metrics
	Log     *zap.Logger
}

// Exporter sums runs.
type Exporter struct {
	cfg      Config
	store    *store
	locks    []io.Closer
	listener *net.UnixListener
	registry *prometheus.Registry
	refused  *prometheus.CounterVec
	scrapes  chan struct{}

	cancel context.CancelFunc
	all    sync.WaitGroup
	mu     sync.Mutex
	conns  map[*net.UnixConn]bool // nil once it is closed
}

// New takes the socket and the state, and begins to take what runs say. It fails with ErrRunning or ErrState.
func New(cfg Config) (*Exporter, error) {
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	e := &Exporter{cfg: cfg, registry: prometheus.NewRegistry(), scrapes: make(chan struct{}, maxScrapes),
		conns: map[*net.UnixConn]bool{}}
	if err := e.open(); err != nil {
		return nil, errors.Join(err, e.unlock())
	}
	ctx, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	e.all.Go(e.accept)
	e.all.Go(func() { e.scan(ctx) })
	return e, nil
}

func (e *Exporter) open() error {
	e.refused = prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: monitor.Namespace,
		Name: "exporter_refused_total", Help: "What the exporter has not taken, by reason."}, []string{"reason"})
	for _, reason := range []string{"connections", "message", "peer", "spool"} {
		e.refused.WithLabelValues(reason)
	}
	for _, c := range []prometheus.Collector{e.refused, monitor.BuildInfo(e.cfg.Version), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := e.registry.Register(c); err != nil {
			return err
		}
	}
	for _, dir := range []string{filepath.Dir(e.cfg.State), filepath.Dir(e.cfg.Socket), spoolOf(e.cfg.Socket)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
	}
	if err := private(filepath.Dir(e.cfg.Socket)); err != nil {
		return err
	}
	for _, path := range []string{e.cfg.Socket, e.cfg.State} {
		if err := e.lock(path); err != nil {
			return err
		}
	}
	var err error
	if e.store, err = openStore(e.cfg.State, e.cfg.Limit); err != nil {
		return err
	}
	if err := e.takeSpool(); err != nil { // before runs are heard: what ended while nobody was here ended first
		return err
	}
	return e.listen()
}

// private judges the folder of the socket.
func private(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s is open to others, with the mode %#o; the folder of the exporter's socket is its user's "+
			"alone: chmod 700", dir, info.Mode().Perm())
	}
	return nil
}

// lock makes the exporter the only one that uses a file.
func (e *Exporter) lock(path string) error {
	f, err := os.OpenFile(path+".lock", os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return fmt.Errorf("locking %s: %w", path, err)
		}
		var pid [16]byte
		n, _ := f.ReadAt(pid[:], 0)
		return fmt.Errorf("%s: %w: the process %s", path, ErrRunning, strings.TrimSpace(string(pid[:n])))
	}
	e.locks = append(e.locks, f)
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, os.Getpid())
	return err
}

func (e *Exporter) unlock() (err error) {
	for _, l := range e.locks {
		err = errors.Join(err, l.Close())
	}
	return err
}

// listen takes over a socket that an exporter has left which was killed: nobody else has the lock.
func (e *Exporter) listen() error {
	if info, err := os.Lstat(e.cfg.Socket); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return fmt.Errorf("%s is no socket, and not the exporter's to remove", e.cfg.Socket)
		}
		if err := os.Remove(e.cfg.Socket); err != nil {
			return err
		}
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: e.cfg.Socket, Net: "unix"})
	if err != nil {
		return err
	}
	e.listener = l
	if err := os.Chmod(e.cfg.Socket, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	return nil
}

// Close ends all connections, saves the state and gives back the socket.
func (e *Exporter) Close() error {
	e.cancel()
	err := e.listener.Close()
	e.mu.Lock()
	for conn := range e.conns {
		_ = conn.Close()
	}
	e.conns = nil
	e.mu.Unlock()
	e.all.Wait()
	return errors.Join(err, e.store.save(), e.unlock())
}

func (e *Exporter) accept() {
	for {
		conn, err := e.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors: some will be given back
			e.cfg.Log.Warn("a run could not be heard", zap.Error(err))
			time.Sleep(10 * time.Millisecond)
			continue
		}
		e.admit(conn)
	}
}

func (e *Exporter) admit(conn *net.UnixConn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.conns == nil || len(e.conns) >= maxConns {
		e.refused.WithLabelValues("connections").Inc()
		_ = conn.Close()
		return
	}
	e.conns[conn] = true
	e.all.Go(func() {
		e.hear(conn)
		_ = conn.Close()
		e.mu.Lock()
		defer e.mu.Unlock()
		delete(e.conns, conn)
	})
}

// hear takes what one run says, to the connection's end.
func (e *Exporter) hear(conn *net.UnixConn) {
	p, err := peer(conn)
	if err != nil {
		e.refuse("peer", err)
		return
	}
	_ = conn.SetReadDeadline(time.Now().Add(frameLimit))
	r := bufio.NewReader(conn)
	id := ""
	defer func() { e.store.leave(id) }()
	for {
		b, err := readFrame(r, func() { _ = conn.SetReadDeadline(time.Now().Add(frameLimit)) })
		if err != nil {
			if errors.Is(err, ErrProtocol) || errors.Is(err, os.ErrDeadlineExceeded) {
				e.refuse("message", err)
			}
			return
		}
		m, err := decode(b)
		if err == nil && id != "" && id != m.ID {
			err = fmt.Errorf("%w: of another run than the one before", ErrProtocol)
		}
		if err != nil {
			e.refuse("message", err)
			return
		}
		first := 0
		if id == "" {
			first = 1
		}
		ended, err := e.store.take(m, p, first)
		if err != nil {
			e.refuse("message", err)
			return
		}
		id = m.ID
		if ended && e.saved() {
			_ = conn.SetWriteDeadline(time.Now().Add(frameLimit))
			_, _ = conn.Write([]byte{acknowledged})
		}
		if ended {
			return
		}
		_ = conn.SetReadDeadline(time.Time{}) // a run that is stopped for a while is still one
	}
}

func (e *Exporter) refuse(reason string, err error) {
	e.refused.WithLabelValues(reason).Inc()
	e.cfg.Log.Warn("refused", zap.String("reason", reason), zap.Error(err))
}

func (e *Exporter) saved() bool {
	err := e.store.save()
	if err != nil {
		e.cfg.Log.Error("not saved", zap.Error(err))
	}
	return err == nil
}

// scan looks after what no connection brings: the spool folder, and runs that are gone.
func (e *Exporter) scan(ctx context.Context) {
	ticks := time.NewTicker(scanPeriod)
	defer ticks.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticks.C:
		}
		gone := e.store.orphans() // a run that is gone has left its end in the spool folder before, if it could
		if err := e.takeSpool(); err != nil {
			e.cfg.Log.Error("the spool folder was not read", zap.Error(err))
			continue
		}
		if len(gone) > 0 {
			if err := e.store.lose(gone); err != nil {
				e.cfg.Log.Error("lost runs were not counted", zap.Error(err))
			}
			e.saved()
		}
	}
}

// takeSpool takes what runs have left. Files are removed when the state is saved.
func (e *Exporter) takeSpool() error {
	dir := spoolOf(e.cfg.Socket)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var taken []string
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if strings.HasPrefix(entry.Name(), spoolPrefix) {
			removeStale(path)
			continue
		}
		if err := e.takeFile(path); err != nil {
			e.refuse("spool", fmt.Errorf("%s: %w", path, err))
		}
		taken = append(taken, path)
	}
	if len(taken) == 0 {
		return nil
	}
	if err := e.store.save(); err != nil {
		return err
	}
	for _, path := range taken {
		err = errors.Join(err, os.Remove(path))
	}
	return err
}

// removeStale removes a file whose writer was killed.
func removeStale(path string) {
	if info, err := os.Lstat(path); err == nil && time.Since(info.ModTime()) > time.Minute {
		_ = os.Remove(path) // it comes again
	}
}

func (e *Exporter) takeFile(path string) error {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, maxFrame+1))
	if err != nil {
		return err
	}
	m, err := decode(b)
	if err != nil {
		return err
	}
	if len(b) > maxFrame || m.Outcome == "" {
		return fmt.Errorf("%w: it does not say how the run ended", ErrProtocol)
	}
	_, err = e.store.take(m, process{}, 0)
	return err
}

// ServeMetrics is the handler of /metrics. What it shows is in the state file before.
func (e *Exporter) ServeMetrics(w http.ResponseWriter, r *http.Request) {
	select {
	case e.scrapes <- struct{}{}:
		defer func() { <-e.scrapes }()
	default:
		http.Error(w, fmt.Sprintf("%d scrapes go on already", maxScrapes), http.StatusServiceUnavailable)
		return
	}
	families, sent, err := e.store.show(r)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	e.saved() // else what was shown may fall after a crash, and what is shown is right all the same
	sums := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return families, nil })
	answer := &answer{ResponseWriter: w}
	promhttp.HandlerFor(prometheus.Gatherers{e.registry, sums}, promhttp.HandlerOpts{EnableOpenMetrics: true}).
		ServeHTTP(answer, r)
	if answer.err == nil && r.Context().Err() == nil {
		sent()
	}
}

// answer notes whether it was written.
type answer struct {
	http.ResponseWriter
	err error
}

// Write implements io.Writer.
func (a *answer) Write(p []byte) (int, error) {
	n, err := a.ResponseWriter.Write(p)
	a.err = errors.Join(a.err, err)
	return n, err
}

// ServeHealth is the handler of /healthz: an exporter that can't save its state is not well.
func (e *Exporter) ServeHealth(w http.ResponseWriter, _ *http.Request) {
	if err := e.store.save(); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	_, _ = io.WriteString(w, "ok\n")
}
