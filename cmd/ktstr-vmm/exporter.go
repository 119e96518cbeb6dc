package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/prometheus/exporter-toolkit/web"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.yaml.in/yaml/v3"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/exporter"
	"github.com/ktstr/ktstr-vmm/pkg/tally"
)

// defaultExporterAddress is where the exporter is scraped by default: from the same host.
const defaultExporterAddress = "127.0.0.1:9843"

// shutdownLimit is how long an exporter that was told to stop waits for scrapes.
const shutdownLimit = 2 * time.Second

// exporterOptions are what the exporter is told.
type exporterOptions struct {
	socket, state string
	limit         int
	addresses     []string
	webConfig     string
	systemd       bool
	log           options // its format and level
}

func exporterCommand() *cobra.Command {
	o := exporterOptions{log: options{Settings: config.New(config.Demo)}}
	c := &cobra.Command{
		Use:   "exporter",
		Short: "Sum the metrics of all runs of a user on this host, and serve the sum to Prometheus",
		Args:  noArguments,
		RunE:  func(c *cobra.Command, _ []string) error { return o.run(c) },
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&o.socket, "socket", "", "where runs find it (default: exporter.sock in $XDG_RUNTIME_DIR/ktstr-vmm)")
	f.StringVar(&o.state, "state", "",
		"the file that keeps the sum (default: exporter.state in $XDG_STATE_HOME/ktstr-vmm)")
	f.IntVar(&o.limit, "max-groups", tally.DefaultLimit,
		"how many sets of suite, kernel, arch and accelerator there are at most; what comes later is \"other\"")
	f.StringArrayVar(&o.addresses, "web.listen-address", []string{defaultExporterAddress},
		"an address for /metrics and /healthz; more than one can be given")
	f.StringVar(&o.webConfig, "web.config.file", "", "a file with TLS and basic auth, as Prometheus's exporters take it")
	f.BoolVar(&o.systemd, "web.systemd-socket", false, "take the addresses from a systemd socket instead")
	for _, name := range []string{"log-level", "log-format"} {
		f.AddFlag(o.log.Lookup(name).Flag)
	}
	return c
}

func (o *exporterOptions) check() (err error) {
	if o.limit < 1 || o.limit > 10000 {
		return errors.New("--max-groups can be 1 to 10000")
	}
	if o.socket == "" {
		if o.socket, err = exporter.DefaultSocket(); err != nil {
			return err
		}
	}
	if o.state == "" {
		if o.state, err = exporter.DefaultState(); err != nil {
			return err
		}
	}
	if o.socket, err = filepath.Abs(o.socket); err != nil {
		return err
	}
	if err := o.log.Check(); err != nil {
		return err
	}
	return web.Validate(o.webConfig)
}

// run serves until a signal.
func (o *exporterOptions) run(c *cobra.Command) error {
	if err := o.check(); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	log := o.log.logger(c.ErrOrStderr())
	listeners, err := o.listen()
	if err != nil {
		return err
	}
	e, err := exporter.New(exporter.Config{Socket: o.socket, State: o.state, Limit: o.limit, Version: version(), Log: log})
	if err != nil {
		closeAll(listeners)
		return err
	}
	log.Info("runs are heard", zap.String("socket", o.socket), zap.String("state", o.state))
	return errors.Join(o.serve(ctx, e, listeners, log), e.Close())
}

func closeAll(listeners []net.Listener) {
	for _, l := range listeners {
		_ = l.Close()
	}
}

func (o *exporterOptions) listen() (listeners []net.Listener, err error) {
	if o.systemd {
		if listeners, err = activation.Listeners(); err == nil && len(listeners) == 0 {
			err = errors.New("--web.systemd-socket: systemd has given no socket")
		}
		return listeners, err
	}
	for _, address := range o.addresses {
		l, err := net.Listen("tcp", address)
		if err != nil {
			closeAll(listeners)
			return nil, err
		}
		listeners = append(listeners, l)
	}
	return listeners, nil
}

// serve serves until ctx ends. Each address has a server of its own, for the toolkit puts its handler in it.
func (o *exporterOptions) serve(ctx context.Context, e *exporter.Exporter, listeners []net.Listener,
	log *zap.Logger) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", e.ServeMetrics)
	mux.HandleFunc("GET /healthz", e.ServeHealth)
	flags := &web.FlagConfig{WebListenAddresses: &o.addresses, WebSystemdSocket: &o.systemd, WebConfigFile: &o.webConfig}
	quiet := slog.New(slog.NewTextHandler(io.Discard, nil)) // what it says is in our log
	guarded := o.guarded()
	ended := make(chan error, len(listeners))
	var servers []*http.Server
	for _, l := range listeners {
		server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 10 * time.Second,
			WriteTimeout: 30 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 16 << 10}
		servers = append(servers, server)
		log.Info("metrics are served", zap.Stringer("address", l.Addr()))
		if beyondLoopback(l.Addr()) && !guarded {
			log.Warn("whoever reaches the address can read the metrics: --web.config.file can ask for a password",
				zap.Stringer("address", l.Addr()))
		}
		go func() { ended <- web.Serve(l, server, flags, quiet) }()
	}
	var errs []error
	left := len(servers)
	select {
	case <-ctx.Done():
	case err := <-ended: // can't serve any more
		errs = append(errs, err)
		left--
	}
	limit, cancel := context.WithTimeout(context.Background(), shutdownLimit)
	defer cancel()
	for _, server := range servers {
		if server.Shutdown(limit) != nil {
			_ = server.Close()
		}
	}
	closeAll(listeners) // of a server that has not come to serve them
	for range left {
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// guarded reports whether scrapers have to say who they are.
func (o *exporterOptions) guarded() bool {
	b, err := os.ReadFile(o.webConfig)
	if err != nil {
		return false
	}
	var c struct {
		Users map[string]string `yaml:"basic_auth_users"`
		TLS   struct {
			ClientAuth string `yaml:"client_auth_type"`
		} `yaml:"tls_server_config"`
	}
	if yaml.Unmarshal(b, &c) != nil {
		return false // Validate has refused it
	}
	return len(c.Users) > 0 || c.TLS.ClientAuth == "RequireAndVerifyClientCert"
}
