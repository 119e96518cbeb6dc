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

// command is a command line for a shell, word by word, that runs the program with these arguments, in the folder and
// with the settings of the environment in which it was called. It is nil if it would be too long.
func (i *invocation) command(args ...string) (words []string) {
	program := "ktstr-vmm"
	if i != nil {
		if i.Dir != "" {
			words = []string{"cd", word(i.Dir), "&&"}
		}
		for _, name := range slices.Sorted(maps.Keys(i.Env)) {
			if strings.HasPrefix(name, config.EnvPrefix) && strings.Trim(name, plain) == "" { // or it is none of ours
				words = append(words, name+"="+word(i.Env[name]))
			}
		}
		if len(i.Args.All) > 0 {
			program = i.Args.All[0]
		}
	}
	words = append(words, word(program))
	for _, a := range args {
		words = append(words, word(a))
	}
	n := 0
	for _, w := range words {
		n += len(w) + 1
	}
	if n > maxCommand {
		return nil
	}
	return words
}
