package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/ktstr/ktstr-vmm/internal/testenv"
)

// In each shell, what a user begins to type becomes what there is: types, scenarios, kernels of the cache.
func TestCompletionInShells(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := os.Symlink(program(t), filepath.Join(dir, "ktstr-vmm")); err != nil {
		t.Fatal(err)
	}
	kernel := filepath.Join(dir, "cache", "ktstr-vmm", "linux-9", "vmlinuz")
	if err := os.MkdirAll(filepath.Dir(kernel), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(kernel, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"), "HOME="+dir,
		"XDG_CACHE_HOME="+filepath.Join(dir, "cache"), "TERM=xterm", "PS1=$ ")
	begun := map[string]string{ // and what becomes of it
		"ktstr-vmm inspect --type CR":                                        "CRSH",
		"ktstr-vmm demo --scenario host":                                     "hostile",
		"ktstr-vmm run --kernel " + strings.TrimSuffix(kernel, "-9/vmlinuz"): kernel,
	}

	t.Run("bash", func(t *testing.T) {
		for line, want := range begun {
			script := `. /usr/share/bash-completion/bash_completion; . <(ktstr-vmm completion bash)
				COMP_WORDS=(` + line + `) COMP_CWORD=$((${#COMP_WORDS[@]} - 1)) COMP_LINE="` + line + `"
				COMP_POINT=${#COMP_LINE} COMP_TYPE=9; __start_ktstr-vmm; echo ${COMPREPLY[@]}`
			cmd := exec.Command(testenv.Tool(t, "bash"), "--norc", "-c", script)
			cmd.Env = env
			// On stderr bash may say that nobody is completing anything.
			if out, err := cmd.Output(); err != nil || strings.TrimSpace(string(out)) != want {
				t.Errorf("%s: %v, %s", line, err, out)
			}
		}
	})
	t.Run("fish", func(t *testing.T) {
		for line, want := range begun {
			cmd := exec.Command(testenv.Tool(t, "fish"), "--no-config", "-c",
				"ktstr-vmm completion fish | source; complete -C '"+line+"'")
			cmd.Env = env
			if out, err := cmd.CombinedOutput(); err != nil || !slices.Contains(strings.Fields(string(out)), want) {
				t.Errorf("%s: %v, %s", line, err, out)
			}
		}
	})
	t.Run("zsh", func(t *testing.T) { // which completes on a terminal alone
		terminal := newPTY(t, 24, 200, nil)
		cmd := exec.Command(testenv.Tool(t, "zsh"), "-f", "-i")
		cmd.Env = env
		terminal.start(cmd)
		keys := func(text string) {
			t.Helper()
			if _, err := terminal.master.WriteString(text); err != nil {
				t.Fatal(err)
			}
		}
		keys("autoload -Uz compinit; compinit -u -D; . <(ktstr-vmm completion zsh); echo rea''dy\n")
		terminal.until("ready", func(text string) bool { return strings.Contains(text, "ready\r\n") })
		for line, want := range begun {
			keys(line + "\t")
			words := strings.Fields(line)
			rest := strings.TrimPrefix(want, words[len(words)-1])
			terminal.until("completed to "+want, func(text string) bool { return strings.Contains(text, line+rest) })
			keys("\x15")
		}
		keys("exit\n")
		ends(t, cmd)
	})
}
