package run

import (
	"regexp"
	"strings"
)

// panicLine is how Linux begins what it cannot go on from: kernel/panic.c, with or without a time
// stamp in front.
var panicLine = regexp.MustCompile(`(?m)^(\[ *\d+\.\d+\](\[[^\]]*\])? )?Kernel panic - not syncing`)

// oopsLine is what may come before it and says why: arch/x86/mm/fault.c, kernel/bug.c.
var oopsLine = regexp.MustCompile(`(?m)^(\[ *\d+\.\d+\](\[[^\]]*\])? )?(BUG: |Oops: |kernel BUG at |general protection fault|Unable to handle kernel)`)

// kernelPanic returns what a console says of a kernel's panic, from the oops that led to it where
// there was one; "" where there was no panic.
func kernelPanic(console []byte) string {
	at := panicLine.FindIndex(console)
	if at == nil {
		return ""
	}
	start := at[0]
	if oops := oopsLine.FindIndex(console[:start]); oops != nil {
		start = oops[0]
	}
	text := strings.ToValidUTF8(string(console[start:]), "\ufffd")
	return strings.TrimRight(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
}
