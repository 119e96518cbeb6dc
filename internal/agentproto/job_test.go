package agentproto_test

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/ktstr/ktstr-vmm/internal/agentproto"
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
	modules := rapid.Map(list, func(params []string) (m []agentproto.Module) {
		for _, p := range params {
			m = append(m, agentproto.Module{Path: agentproto.ModulesDir + "/m.ko", Params: p})
		}
		return m
	})
	rapid.Check(t, func(t *rapid.T) {
		want := agentproto.Job{
			Args: rapid.SliceOfN(text, 1, -1).Draw(t, "args"), Env: list.Draw(t, "env"), Dir: text.Draw(t, "dir"),
			Window: agentproto.Window{Rows: rapid.Uint16().Draw(t, "rows"), Cols: rapid.Uint16().Draw(t, "cols")},
			Stdin:  rapid.Bool().Draw(t, "stdin"), Prompt: rapid.Bool().Draw(t, "prompt"),
			TTY: rapid.Bool().Draw(t, "tty"), OneOutput: rapid.Bool().Draw(t, "one output"),
			Modules: modules.Draw(t, "modules"), Scheduler: list.Draw(t, "scheduler"),
			SchedulerWait: time.Duration(rapid.Int64().Draw(t, "scheduler wait")),
			OpenFiles:     agentproto.Limit{Soft: rapid.Uint64().Draw(t, "soft"), Hard: rapid.Uint64().Draw(t, "hard")},
		}
		got, err := agentproto.ParseJob(want.Encode())
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Fatalf("%+v became %+v, %v\n%s", want, got, err, want.Encode())
		}
	})
}

func TestFormat(t *testing.T) {
	j := agentproto.Job{
		Args: []string{"/bin/echo", "two\nlines", "\x00\xff"}, Env: []string{"A=b"}, Dir: "/", TTY: true,
		Window: agentproto.Window{Rows: 50, Cols: 132}, Stdin: true,
		Modules:   []agentproto.Module{{Path: "/m.ko"}, {Path: "/n.ko", Params: "a=1 b=\"2 3\""}},
		Scheduler: []string{"/s"},
		OpenFiles: agentproto.Limit{Soft: 1024, Hard: 4096},
	}
	want := `arg "/bin/echo"
arg "two\nlines"
arg "\x00\xff"
env "A=b"
dir "/"
tty "true"
window "50 132"
stdin "true"
prompt "false"
one-output "false"
module "/m.ko "
module "/n.ko a=1 b=\"2 3\""
scheduler "/s"
scheduler-wait "0s"
open-files "1024 4096"
`
	if got := j.Encode(); got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, text := range []string{
		"", "dir \"/\"\n", "\n", "arg", "arg \"a", "arg a\n", "arg \"a\"\nwhat \"b\"\n",
		"arg \"a\"\ntty \"perhaps\"\n", "arg \"a\"\nscheduler-wait \"soon\"\n", "arg \"a\"\n\n",
		"arg \"a\"\nopen-files \"1\"\n", "arg \"a\"\nopen-files \"-1 2\"\n", "arg \"a\"\nopen-files \"1 2 3\"\n",
	} {
		if j, err := agentproto.ParseJob(text); !errors.Is(err, agentproto.ErrJob) {
			t.Errorf("%q is %+v, %v", text, j, err)
		}
	}
}

// FuzzParse holds every job that can be read against what Encode makes of it.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"arg \"/bin/echo\"\narg \"two\\nlines\"\nenv \"HOME=/root\"\ndir \"/src\"\ntty \"true\"\n" +
			"one-output \"false\"\nscheduler \"/s\"\nscheduler-wait \"10s\"\nopen-files \"1024 4096\"\n",
		"arg `raw`", "arg 'c'\n", "arg \"\\x00\\xff\"\n", "arg \"a\"\r\n", "arg\n", "tty \"1\"\narg \"\"\n",
		"open-files \"0 18446744073709551615\"\narg \"a\"\n",
	} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		j, err := agentproto.ParseJob(text)
		if err != nil {
			if !errors.Is(err, agentproto.ErrJob) {
				t.Errorf("%q: %v", text, err)
			}
			return
		}
		again, err := agentproto.ParseJob(j.Encode())
		if err != nil || !reflect.DeepEqual(again, j) {
			t.Errorf("%q is %+v, and then %+v, %v", text, j, again, err)
		}
	})
}
