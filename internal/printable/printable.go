// Package printable says what of a text a terminal shows as it is.
package printable

import (
	"bytes"
	"unicode"
	"unicode/utf8"
)

// Escape returns a text in which escape has written what a terminal would act on, or would not show where it is: all
// such characters from U+007F on. Those below are for the text's own format, which has escapes for them.
func Escape(text []byte, escape func(out []byte, c rune) []byte) []byte {
	shown := func(c rune) bool { return c < 0x7f || unicode.IsPrint(c) }
	if bytes.IndexFunc(text, func(c rune) bool { return !shown(c) }) < 0 {
		return text
	}
	out := make([]byte, 0, len(text))
	for _, c := range string(text) {
		if shown(c) {
			out = utf8.AppendRune(out, c)
		} else {
			out = escape(out, c)
		}
	}
	return out
}
