package main

import (
	"os"
	"regexp"
	"strings"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/run"
)

// userinfo is what a URL may have in front of its host: a name and a password, which may have an @, too.
var userinfo = regexp.MustCompile(`://[^/?#\s]*@`)

// invocation is how this process was called, without the passwords of its URLs.
func invocation() run.Invocation {
	call := run.Invocation{Args: append([]string(nil), os.Args...)}
	call.Dir, _ = os.Getwd() // it may be gone, and is not needed
	for _, e := range os.Environ() {
		if strings.HasPrefix(e, config.EnvPrefix) {
			call.Env = append(call.Env, e)
		}
	}
	for _, texts := range [][]string{call.Args, call.Env} {
		for i := range texts {
			texts[i] = userinfo.ReplaceAllString(texts[i], "://…@")
		}
	}
	return call
}
