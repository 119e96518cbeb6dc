package call

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
)

// CommandSession is the number of the session that is the run's command, the others are what NEXT has opened.
const CommandSession = 0

// WindowSize is the size of a terminal's window, in characters.
type WindowSize struct{ Rows, Cols uint16 }

// Program is what a session runs, on a terminal of its own.
type Program struct {
	Args []string // empty: the guest's shell
	Dir  string   // "": the command's
	Term string   // what the terminal is, for TERM; "": the command's
	Rows uint16
	Cols uint16
}

// maxProgram bounds an encoded Program: it is the answer to NEXT, in a slot of the middle size.
const maxProgram = middleSlot - SlotHeaderSize

var le = binary.LittleEndian

// stdinRequest asks for the next bytes of a session's stdin: at least 1 and at most Max. The response is these bytes;
// if there are none, that was all.
type stdinRequest struct{ Session, Max uint32 }

func (r stdinRequest) encode() []byte { return le.AppendUint32(le.AppendUint32(nil, r.Session), r.Max) }

func decodeStdinRequest(b []byte) (r stdinRequest, err error) {
	if len(b) != 8 {
		return r, wrongLength(Stdin, b, 8)
	}
	return stdinRequest{le.Uint32(b), le.Uint32(b[4:])}, nil
}

// A WINCH has the session's number, and its response the window's new size; if it has none, the session is to be hung
// up.

func encodeSession(session uint32) []byte { return le.AppendUint32(nil, session) }

func decodeSession(k Kind, b []byte) (uint32, error) {
	if len(b) != 4 {
		return 0, wrongLength(k, b, 4)
	}
	return le.Uint32(b), nil
}

func (s WindowSize) encode() []byte { return le.AppendUint16(le.AppendUint16(nil, s.Rows), s.Cols) }

func decodeWindowSize(b []byte) (WindowSize, error) {
	if len(b) != 4 {
		return WindowSize{}, wrongLength(Winch, b, 4)
	}
	return WindowSize{le.Uint16(b), le.Uint16(b[2:])}, nil
}

// A NEXT has no data. Its response is the number of the new session, the window's rows and columns as u16, and then
// strings, each with a NUL behind it: TERM, the folder, and the program with its arguments.

func encodeNext(session uint32, p Program) []byte {
	b := append(encodeSession(session), WindowSize{p.Rows, p.Cols}.encode()...)
	for _, s := range append([]string{p.Term, p.Dir}, p.Args...) {
		b = append(append(b, s...), 0)
	}
	return b
}

func decodeNext(b []byte) (session uint32, p Program, err error) {
	if len(b) < 8 {
		return 0, p, wrongLength(Next, b, 8)
	}
	text, ok := strings.CutSuffix(string(b[8:]), "\x00")
	words := strings.Split(text, "\x00")
	if !ok || len(words) < 2 {
		return 0, p, fmt.Errorf("%w: NEXT has %d strings, they are 2 or more", ErrFormat, len(words))
	}
	p = Program{Term: words[0], Dir: words[1], Rows: le.Uint16(b[4:]), Cols: le.Uint16(b[6:])}
	if len(words) > 2 {
		p.Args = words[2:]
	}
	return le.Uint32(b), p, nil
}

// check reports what no NEXT can carry.
func (p Program) check() error {
	for _, s := range append([]string{p.Term, p.Dir}, p.Args...) {
		if strings.ContainsRune(s, 0) {
			return fmt.Errorf("%w: %q has a NUL in it", ErrFormat, s)
		}
	}
	if n := len(encodeNext(0, p)); n > maxProgram {
		return fmt.Errorf("%w: a program, its folder and its arguments of %d bytes, at most %d", ErrFormat, n, maxProgram)
	}
	return nil
}

// An OUTPUT is the session's number and bytes that it wrote. Its response, which has no data, comes when they were
// taken.

func encodeOutput(session uint32, p []byte) []byte { return append(encodeSession(session), p...) }

func decodeOutput(b []byte) (session uint32, p []byte, err error) {
	if len(b) < 4 {
		return 0, nil, wrongLength(Output, b, 4)
	}
	return le.Uint32(b), b[4:], nil
}

// closedRequest says with which exit code a session has ended, as a shell has it: 0 to 255. The response has no
// data. That for session 0 comes when the guest may end.
type closedRequest struct {
	Session uint32
	Code    uint32
}

func (r closedRequest) encode() []byte {
	return le.AppendUint32(le.AppendUint32(nil, r.Session), r.Code)
}

func decodeClosedRequest(b []byte) (r closedRequest, err error) {
	if len(b) != 8 {
		return r, wrongLength(Closed, b, 8)
	}
	if r = (closedRequest{le.Uint32(b), le.Uint32(b[4:])}); r.Code > math.MaxUint8 {
		return r, fmt.Errorf("%w: %v with exit code %d, it is 0 to %d", ErrFormat, Closed, r.Code, math.MaxUint8)
	}
	return r, nil
}

func wrongLength(k Kind, b []byte, want int) error {
	return fmt.Errorf("%w: %v has %d bytes, %d are expected", ErrFormat, k, len(b), want)
}
