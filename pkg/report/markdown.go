package report

import "strings"

// Markdown is any text as a line of Markdown that shows it: CommonMark 0.31, 2.4 "Backslash escapes". It may begin a
// line, where spaces make it code, and a dash or a number with a dot make it an item of a list.
func Markdown(s string) string {
	var b strings.Builder
	s = strings.TrimLeft(Printable(s), " ")
	digits := len(s) - len(strings.TrimLeft(s, "0123456789"))
	for i, c := range s {
		if strings.ContainsRune("!#$&()*+<>@[\\]_`{|}~", c) || i == 0 && c == '-' ||
			i == digits && i > 0 && c == '.' && strings.HasPrefix(s[i+1:]+" ", " ") {
			b.WriteByte('\\')
		}
		b.WriteRune(c)
	}
	return b.String()
}

// MarkdownBlock is text of many lines as a block of Markdown that shows it: a fence that is longer than any in it.
func MarkdownBlock(s string) string {
	text := strings.TrimRight(PrintableLines(s), "\n")
	fence := strings.Repeat("`", max(3, longestRun(text, '`')+1))
	return fence + "text\n" + text + "\n" + fence + "\n"
}

// longestRun is the length of the longest run of a character.
func longestRun(s string, c rune) (longest int) {
	n := 0
	for _, x := range s {
		if x != c {
			n = 0
			continue
		}
		n++
		longest = max(longest, n)
	}
	return longest
}
