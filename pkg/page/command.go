package page

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/ktstr/ktstr-vmm/pkg/config"
)

// maxCommand bounds what is shown of a command line, in bytes. A part of one would do something else.
const maxCommand = 64 << 10

// plain are the characters of a word that a shell takes as they are.
const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_+=,@%:./"

// word makes a word of a shell's. What is pasted into a terminal has nothing in it that the terminal would act on, and
// shows all that it is: such characters are escaped as bash, zsh and busybox read them.
func word(s string) string {
	if s != "" && strings.Trim(s, plain) == "" && !strings.HasPrefix(s, "=") {
		return s
	}
	if !strings.ContainsFunc(s, func(c rune) bool { return !unicode.IsPrint(c) || c == utf8.RuneError }) {
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	var b strings.Builder
	b.WriteString("$'")
	for len(s) > 0 {
		c, n := utf8.DecodeRuneInString(s)
		switch {
		case c == '\'' || c == '\\':
			b.WriteString(`\` + string(c))
		case unicode.IsPrint(c) && c != utf8.RuneError:
			b.WriteRune(c)
		default:
			for _, x := range []byte(s[:n]) {
				fmt.Fprintf(&b, `\%03o`, x)
			}
		}
		s = s[n:]
	}
	return b.String() + "'"
}

// command is a command line for a shell.
func command(args []string) string {
	words := make([]string, len(args))
	for i, a := range args {
		words[i] = word(a)
	}
	if text := strings.Join(words, " "); len(text) <= maxCommand {
		return text
	}
	return ""
}

// command is the command line that does the run again: in its folder, and with the settings of its environment.
func (i *invocation) command() string {
	if i == nil || len(i.Args.All) == 0 || i.Args.More > 0 {
		return ""
	}
	text := command(i.Args.All)
	if text == "" {
		return ""
	}
	for _, name := range slices.Backward(slices.Sorted(maps.Keys(i.Env))) {
		if !strings.HasPrefix(name, config.EnvPrefix) || strings.Trim(name, plain) != "" { // it is none of ours
			continue
		}
		text = name + "=" + word(i.Env[name]) + " " + text
	}
	if i.Dir != "" {
		text = "cd " + word(i.Dir) + " && " + text
	}
	if len(text) > maxCommand {
		return ""
	}
	return text
}
