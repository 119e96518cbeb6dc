package agent

import (
	"context"
	"os"

	"github.com/ktstr/ktstr-vmm/pkg/call"
)

// stdinChunk is how much is asked for at a time.
const stdinChunk = call.MostBytes

// feedStdin writes what the host has for the command's stdin to a pipe, to the end. A command that takes nothing is not
// asked for by the host, and one that has closed its end needs no more.
func (a *agent) feedStdin(ctx context.Context, w *os.File) {
	defer w.Close()
	// A command may leave bytes in the pipe for ever.
	defer context.AfterFunc(ctx, func() { w.Close() })()
	buf := make([]byte, stdinChunk)
	for {
		n, err := a.calls.Stdin(ctx, call.CommandSession, buf)
		if n == 0 || err != nil {
			a.sayUnlessOver(ctx, err)
			return
		}
		if _, err := w.Write(buf[:n]); err != nil { // EPIPE, or the run's end
			return
		}
	}
}

// typeStdin types what the host has for a session on its terminal. The end of it is the end of the command's input; for
// another session it is the terminal's, of which followWindow hears too.
func (a *agent) typeStdin(ctx context.Context, session uint32, master *os.File) {
	most := stdinChunk
	if session != call.CommandSession {
		most = call.FewBytes
	}
	buf := make([]byte, most)
	for last := byte(0); ; {
		n, err := a.calls.Stdin(ctx, session, buf)
		if err != nil {
			a.sayUnlessOver(ctx, err)
			return
		}
		if n == 0 {
			if session == call.CommandSession {
				_, _ = master.Write(endOfInput(last)) // it may be closed
			}
			return
		}
		last = buf[n-1]
		if _, err := master.Write(buf[:n]); err != nil {
			return
		}
	}
}

// followWindow keeps a terminal's size that of the user's window, and reports whether the user has hung up, or false
// when ctx ends.
func (a *agent) followWindow(ctx context.Context, session uint32, master *os.File) (hungUp bool) {
	for {
		size, hungUp, err := a.calls.Winch(ctx, session)
		if hungUp || err != nil {
			a.sayUnlessOver(ctx, err)
			return hungUp
		}
		_ = resize(master, size) // it may be closed
	}
}

// sayUnlessOver says on the console what went wrong with a call.
func (a *agent) sayUnlessOver(ctx context.Context, err error) {
	if err != nil && ctx.Err() == nil {
		a.complain(err)
	}
}
