package job_test

import (
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/internal/job"
)

// Whatever bytes a job has, the agent reads what the host wrote.
func TestRoundTrip(t *testing.T) {
	text := rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) })
	list := rapid.Map(rapid.SliceOf(text), func(s []string) []string {
		if len(s) == 0 {
			return nil
		}
		return s
	})
	rapid.Check(t, func(t *rapid.T) {
		want := job.Job{
			Args: rapid.SliceOfN(text, 1, -1).Draw(t, "args"), Env: list.Draw(t, "env"), Dir: text.Draw(t, "dir"),
			TTY: rapid.Bool().Draw(t, "tty"), OneOutput: rapid.Bool().Draw(t, "one output"), Scheduler: list.Draw(t, "scheduler"),
		}
		got, err := job.Parse(want.Encode())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v became %+v, %v\n%s", want, got, err, want.Encode())
		}
	})
}

func TestFormat(t *testing.T) {
	j := job.Job{
		Args: []string{"/bin/echo", "two\nlines", "\x00\xff"}, Env: []string{"A=b"}, Dir: "/", TTY: true, Scheduler: []string{"/s"},
	}
	want := `arg "/bin/echo"
arg "two\nlines"
arg "\x00\xff"
env "A=b"
dir "/"
tty "true"
one-output "false"
scheduler "/s"
`
	if got := j.Encode(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"", "dir \"/\"\n", "\n", "arg", "arg \"a", "arg a\n", "arg \"a\"\nwhat \"b\"\n", "arg \"a\"\ntty \"perhaps\"\n", "arg \"a\"\n\n",
	} {
		if j, err := job.Parse(text); !errors.Is(err, job.ErrFormat) {
			t.Errorf("%q is %+v, %v", text, j, err)
		}
	}
}
