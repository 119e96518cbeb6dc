package report

import (
	"strconv"
	"strings"
	"unicode"
)

// Printable returns any text as one line, with the characters that a terminal would act on escaped as in Go's strings.
func Printable(s string) string { return escape(s, "") }

// PrintableLines is Printable for text of many lines: line ends and tabs stay.
func PrintableLines(s string) string { return escape(strings.ReplaceAll(s, "\r\n", "\n"), "\n\t") }

func escape(s, keep string) string {
	var b strings.Builder
	for _, c := range strings.ToValidUTF8(s, "\ufffd") {
		if unicode.IsPrint(c) || strings.ContainsRune(keep, c) {
			b.WriteRune(c)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(c), "'"))
		}
	}
	return b.String()
}
