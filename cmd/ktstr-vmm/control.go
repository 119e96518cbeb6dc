package main

import (
	"context"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/control"
	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// controlEndLimit is how long a run that is over waits for clients that have not read the ends of their answers.
const controlEndLimit = lastWordsLimit

// controlSocket is the socket by which others ask a run.
type controlSocket struct {
	listens chan *control.Server // what open made, as soon as it listens
	serves  *control.Server      // nil until the run can be asked
}

// prepare makes a run answer. The socket itself is made by open.
func (k *controlSocket) prepare(cfg *run.Config) {
	k.listens = make(chan *control.Server, 1)
	live := cfg.OnLive
	cfg.OnLive = func(l *run.Live) {
		if live != nil {
			live(l)
		}
		if k.serves = taken(k.listens); k.serves != nil {
			k.serves.Serve(l)
		}
	}
}

// open makes the socket. Nobody has asked for the default one, so a run does without it where it can't be made.
func (k *controlSocket) open(s *session) error {
	if s.Control == config.ControlNone {
		return nil
	}
	server, err := listenControl(s)
	switch {
	case err == nil:
		k.listens <- server
	case s.Control == config.ControlAuto:
		s.log.Debug("ktstr-vmm ctl can't ask the run", zap.Error(err))
	default:
		return fmt.Errorf("--control %q: %w", s.Control, err)
	}
	return nil
}

func listenControl(s *session) (_ *control.Server, err error) {
	cfg := control.Config{Path: s.Control, Version: version(), Metrics: s.registry, Log: s.log}
	if s.Control == config.ControlAuto {
		if cfg.Path, err = control.DefaultPath(s.id); err != nil {
			return nil, err
		}
	}
	return control.Listen(cfg)
}

// close removes the socket and gives clients the rest of their answers. It returns at once; wait waits for that, for a
// moment at most.
func (k *controlSocket) close() (wait func()) {
	server := k.serves
	if server == nil {
		server = taken(k.listens)
	}
	if server == nil {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), controlEndLimit)
		defer cancel()
		_ = server.Close(ctx) // a socket that is left is one of a run that is gone
	}()
	return func() {
		select {
		case <-done:
		case <-time.After(controlEndLimit + controlEndLimit/10): // the folder may be on a file system that is stuck
		}
	}
}
