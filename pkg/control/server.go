package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"github.com/ktstr/ktstr-vmm/pkg/call"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/shm"
	"github.com/ktstr/ktstr-vmm/pkg/vm"
)

// Run is a run that is going on, as run.Live is one. Its methods wait for nothing outside, but for those that have a
// context.
type Run interface {
	Status() run.Status
	RequestDump(why string) error
	RequestStall() error
	Signal(slot shm.Slot, v byte) error
	Stop(now bool) error
	RingSize() uint64
	ReadRing(p []byte, off uint64) (int, error)
	Console(from uint64) (p []byte, at uint64)
	Messages(from int) []run.Message
	Follow(from int, types ...shm.Type) *run.Follower
	Registers(ctx context.Context) ([]vm.Registers, func(address uint64) string, error)
	Open(ctx context.Context, p call.Program) (*call.Session, error)
	Done() <-chan struct{}
	Result() *run.Result
}

// Config describes a server.
type Config struct {
	Path    string              // of the socket
	Version string              // of the program
	Metrics prometheus.Gatherer // the run's
	Log     *zap.Logger         // nil: nothing is logged
}

// Server answers for a run.
type Server struct {
	cfg      Config
	listener *listener
	run      Run
	closing  context.Context
	close    context.CancelFunc

	registers chan struct{} // who reads the registers

	all   sync.WaitGroup
	mu    sync.Mutex
	conns map[*net.UnixConn]bool // nil when they are being closed
}

// Listen makes the socket. Clients wait until Serve is called. Close has to be called in any case.
func Listen(cfg Config) (*Server, error) {
	l, err := listen(cfg.Path)
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = zap.NewNop()
	}
	s := &Server{cfg: cfg, listener: l, conns: map[*net.UnixConn]bool{}, registers: make(chan struct{}, 1)}
	s.closing, s.close = context.WithCancel(context.Background())
	return s, nil
}

// Serve begins to answer for a run. It returns at once.
func (s *Server) Serve(r Run) {
	s.run = r
	s.all.Go(s.accept)
}

// Close removes the socket. Clients that have asked get the rest of their answers while ctx lasts; followers get an end
// if the run is over.
func (s *Server) Close(ctx context.Context) error {
	s.close()
	err := s.listener.Close()
	served := make(chan struct{})
	go func() {
		s.all.Wait()
		close(served)
	}()
	s.each(func(conn *net.UnixConn) { _ = conn.SetReadDeadline(time.Now()) }) // who has not asked is too late
	select {
	case <-served:
		return err
	case <-ctx.Done():
	}
	s.each(func(conn *net.UnixConn) { _ = conn.Close() })
	<-served
	return err
}

func (s *Server) each(do func(*net.UnixConn)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.conns {
		do(conn)
	}
}

func (s *Server) accept() {
	for {
		conn, err := s.listener.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // out of file descriptors: some will be given back
			s.cfg.Log.Debug("a client could not be served", zap.Error(err))
			time.Sleep(10 * time.Millisecond)
			continue
		}
		s.admit(conn)
	}
}

// admit serves a client, or says that there are too many.
func (s *Server) admit(conn *net.UnixConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= MaxClients || s.closing.Err() != nil {
		full := &Error{CodeBusy, fmt.Sprintf("%v, %d: try again", ErrBusy, MaxClients)}
		_ = newConversation(s, conn).end(nil, full) // a new connection has room for it
		_ = conn.Close()
		return
	}
	s.conns[conn] = true
	s.all.Go(func() {
		s.serve(conn)
		_ = conn.Close()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, conn)
	})
}

// serve answers one request.
func (s *Server) serve(conn *net.UnixConn) {
	c := newConversation(s, conn)
	end, err := c.answer()
	_ = c.end(end, err) // a client that is gone needs no answer
}

// conversation is a client's request and the answer to it.
type conversation struct {
	*Server
	conn  *net.UnixConn
	in    *bufio.Reader
	out   *bufio.Writer
	begun bool
}

func newConversation(s *Server, conn *net.UnixConn) *conversation {
	return &conversation{Server: s, conn: conn, in: bufio.NewReaderSize(conn, MaxRequest),
		out: bufio.NewWriterSize(patient{conn}, chunkSize)}
}

// patient is a client to write to, who has a time for each piece.
type patient struct{ *net.UnixConn }

// Write implements io.Writer.
func (p patient) Write(b []byte) (int, error) {
	_ = p.SetWriteDeadline(time.Now().Add(WriteLimit))
	return p.UnixConn.Write(b)
}

// request reads the client's line.
func (c *conversation) request() ([]byte, error) {
	_ = c.conn.SetReadDeadline(time.Now().Add(requestLimit))
	if c.closing.Err() != nil { // after the deadline is set, for Close sets one, too
		return nil, ErrOver
	}
	text, err := c.in.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return nil, wrong("the request has more than %d bytes before the end of its line", MaxRequest)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, wrong("no request came within %v", requestLimit)
	case err != nil:
		return nil, wrong("the request has no end of line: %v", err)
	}
	return text, nil
}

func (c *conversation) answer() (*End, error) {
	if _, err := peer(c.conn); err != nil {
		return nil, err
	}
	text, err := c.request()
	if err != nil {
		return nil, err
	}
	ask, err := parse(text)
	if err != nil {
		return nil, err
	}
	return ask.answer(c)
}

// send writes a line, at the latest when flush is called.
func (c *conversation) send(l line) error {
	if !c.begun {
		l.Version, c.begun = Version, true
	}
	text, err := json.Marshal(l)
	if err != nil {
		return err
	}
	_, err = c.out.Write(append(text, '\n'))
	return err
}

// end writes the answer's last line.
func (c *conversation) end(end *End, err error) error {
	last := line{End: end}
	if err != nil {
		last = line{Error: errorOf(err)}
	} else if end == nil {
		last.End = &End{}
	}
	return errors.Join(c.send(last), c.out.Flush())
}

func errorOf(err error) *Error {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e
	case errors.Is(err, run.ErrOver), errors.Is(err, ErrOver), errors.Is(err, context.Canceled): // by Close
		return &Error{CodeOver, ErrOver.Error()}
	case errors.Is(err, run.ErrBusy):
		return &Error{CodeBusy, err.Error()}
	}
	return &Error{CodeFailed, err.Error()}
}
