package agent

import "bytes"

// maxLine bounds a line of the message file, in bytes.
const maxLine = 256 << 10

// lines cuts what is written to it into lines and gives each away, without its end. A line of more
// than maxLine bytes is given to tooLong, its first bytes.
type lines struct {
	line    func([]byte)
	tooLong func([]byte)

	begun []byte // of a line whose end has not come
	long  bool   // it is too long, and what comes of it is passed over
}

// Write never fails.
func (l *lines) Write(p []byte) (int, error) {
	for rest := p; len(rest) > 0; {
		part, after, ends := bytes.Cut(rest, []byte{'\n'})
		l.add(part)
		if ends {
			l.end()
		}
		rest = after
	}
	return len(p), nil
}

func (l *lines) add(part []byte) {
	if l.long {
		return
	}
	if len(l.begun)+len(part) > maxLine {
		l.long = true
		l.tooLong(append(l.begun, part[:maxLine-len(l.begun)]...))
		return
	}
	l.begun = append(l.begun, part...)
}

// end takes what has come of a line for all of it.
func (l *lines) end() {
	if !l.long {
		if line := bytes.TrimSuffix(l.begun, []byte{'\r'}); len(bytes.TrimSpace(line)) > 0 {
			l.line(line)
		}
	}
	l.begun, l.long = l.begun[:0], false
}
