package report

import (
	"bytes"
	"io"
	"unicode/utf8"
)

// Visible passes text on to a writer, with what a terminal would act on escaped, as in Printable, except line ends and
// tabs. The text may be split anywhere: the possible beginning of a longer sequence is held until its rest comes.
type Visible struct {
	w    io.Writer
	held []byte // the beginning of a character, or a carriage return
}

// NewVisible returns a Visible that writes to w.
func NewVisible(w io.Writer) *Visible { return &Visible{w: w} }

// Write passes p on, except for what is held until more comes.
func (v *Visible) Write(p []byte) (int, error) {
	text := append(v.held, p...)
	keep := unfinished(text)
	if bytes.HasSuffix(text, []byte{'\r'}) { // which ends a line together with what may follow
		keep = 1
	}
	v.held = bytes.Clone(text[len(text)-keep:])
	if err := v.pass(text[:len(text)-keep]); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush passes on what is held: no more text will come.
func (v *Visible) Flush() error {
	text := v.held
	v.held = nil
	return v.pass(text)
}

func (v *Visible) pass(text []byte) error {
	if len(text) == 0 {
		return nil
	}
	_, err := io.WriteString(v.w, PrintableLines(string(text)))
	return err
}

// unfinished is how many bytes at the end of text begin a character that is not all there.
func unfinished(text []byte) int {
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		if part := text[len(text)-n:]; utf8.RuneStart(part[0]) {
			if utf8.FullRune(part) {
				return 0
			}
			return n
		}
	}
	return 0
}
