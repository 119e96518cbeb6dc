package main

import (
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// metricsServer serves /metrics and /healthz.
type metricsServer struct {
	listener net.Listener
	http     *http.Server
	ended    chan struct{} // nil until it serves
}

// listenMetrics takes the address at once, so that one that can't be had is known before a run;
// nobody is answered before serve.
func listenMetrics(addr string, run *prometheus.Registry) (*metricsServer, error) {
	registry := prometheus.NewRegistry() // of this process, whose metrics are in no sum
	for _, c := range []prometheus.Collector{collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(prometheus.Gatherers{run, registry},
		promhttp.HandlerOpts{EnableOpenMetrics: true, MaxRequestsInFlight: 8}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	return &metricsServer{listener: l, http: &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    16 << 10,
	}}, nil
}

func (s *metricsServer) url() string { return "http://" + s.listener.Addr().String() + "/metrics" }

// beyondLoopback reports whether other hosts may reach an address.
func beyondLoopback(addr net.Addr) bool {
	tcp, ok := addr.(*net.TCPAddr)
	return ok && !tcp.IP.IsLoopback()
}

func (s *metricsServer) serve() {
	s.ended = make(chan struct{})
	go func() {
		defer close(s.ended)
		_ = s.http.Serve(s.listener) // ends with ErrServerClosed
	}()
}

// serving reports whether serve was called: a run that fails before its machine is there has no
// metrics.
func (s *metricsServer) serving() bool { return s.ended != nil }

func (s *metricsServer) close() {
	_ = s.http.Close()
	_ = s.listener.Close()
	if s.serving() {
		<-s.ended
	}
}
