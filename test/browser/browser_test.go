// Package browser looks at the pages that "ktstr-vmm report" makes, in a browser. It is a module of its own: no other
// part of the repository needs what drives one.
package browser

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// hangLimit is generous: nothing here is about speed.
const hangLimit = 2 * time.Minute

var (
	dir     string          // of what all tests share
	program string          // the real binary
	browser context.Context // nil: there is none
	missing error
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	var err error
	if dir, err = os.MkdirTemp("", "ktstr-browser"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "ktstr-vmm")
	build := exec.Command("go", "build", "-o", program, "./cmd/ktstr-vmm")
	build.Dir = filepath.Join("..", "..")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		return 1
	}
	path, err := exec.LookPath("chromium")
	if err != nil {
		missing = err
		return m.Run()
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.NoSandbox,
		chromedp.UserDataDir(filepath.Join(dir, "profile"))) // no sandbox: it needs another user than root
	allocator, end := chromedp.NewExecAllocator(context.Background(), options...)
	defer end()
	var cancel context.CancelFunc
	browser, cancel = chromedp.NewContext(allocator)
	defer cancel()
	if err := chromedp.Do(browser); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

func command(args ...string) *exec.Cmd {
	c := exec.Command(program, args...)
	c.Env = append(os.Environ(), "KTSTR_VMM_EXPORTER=none", "KTSTR_VMM_MEMORY=64M", "KTSTR_VMM_SHM_SIZE=1M")
	return c
}

// vmm runs the program, whose exit code has to be this one.
func vmm(t *testing.T, code int, args ...string) {
	t.Helper()
	c := command(args...)
	out, err := c.CombinedOutput()
	if c.ProcessState == nil || c.ProcessState.ExitCode() != code {
		t.Fatalf("%q: %v, want exit code %d\n%s", args, err, code, out)
	}
}

// written writes a file, as JSON if it is not text.
func written(t *testing.T, name string, content any) string {
	t.Helper()
	text, ok := content.(string)
	if !ok {
		b, err := json.Marshal(content)
		if err != nil {
			t.Fatal(err)
		}
		text = string(b)
	}
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// reported makes a page of reports.
func reported(t *testing.T, code int, args ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "page.html")
	vmm(t, code, append([]string{"report", "--output", path}, args...)...)
	return path
}

// look is how a page is looked at.
type look struct {
	width    int64
	dark     bool
	noScript bool
}

// tab is an open page.
type tab struct {
	ctx context.Context

	mu       sync.Mutex
	trouble  []string // what the console, the page or the policy complained about
	requests map[network.RequestID]string
	stopped  map[network.RequestID]bool // by the policy
}

// open loads a page.
func open(t *testing.T, path string, l look) *tab {
	t.Helper()
	if browser == nil {
		t.Skipf("this test needs Chromium: %v", missing)
	}
	ctx, cancel := chromedp.NewContext(browser)
	t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, hangLimit)
	t.Cleanup(cancel)
	b := &tab{ctx: ctx, requests: map[network.RequestID]string{}, stopped: map[network.RequestID]bool{}}
	if err := chromedp.Listen(ctx, b.listen); err != nil {
		t.Fatal(err)
	}
	call(t, b, network.Enable, network.EnableParams{})
	b.look(t, l)
	call(t, b, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: l.noScript})
	b.do(t, chromedp.Navigate("file://"+path))
	return b
}

// look makes the page look so.
func (b *tab) look(t *testing.T, l look) {
	t.Helper()
	scheme := "light"
	if l.dark {
		scheme = "dark"
	}
	call(t, b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: cmp.Or(l.width, 1280), Height: 900, DeviceScaleFactor: 1})
	call(t, b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
}

// call gives the browser a command of its protocol.
func call[P, R any](t *testing.T, b *tab, command cdp.Command[P, R], params P) R {
	t.Helper()
	r, err := chromedp.Call(b.ctx, command, params)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (b *tab) listen(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventConsoleAPICalled:
		b.trouble = append(b.trouble, fmt.Sprintf("console: %s", e.Type))
	case *runtime.EventExceptionThrown:
		b.trouble = append(b.trouble, "exception: "+e.ExceptionDetails.Text)
	case *log.EventEntryAdded:
		b.trouble = append(b.trouble, fmt.Sprintf("log: %s: %s", e.Entry.Source, e.Entry.Text))
	case *page.EventJavascriptDialogOpening:
		b.trouble = append(b.trouble, "dialog: "+e.Message)
	case *network.EventRequestWillBeSent:
		b.requests[e.RequestID] = e.Request.URL
	case *network.EventLoadingFailed:
		b.stopped[e.RequestID] = e.BlockedReason == network.BlockedReasonCsp
	}
}

func (b *tab) do(t *testing.T, actions ...chromedp.Action[chromedp.Void]) {
	t.Helper()
	if err := chromedp.Do(b.ctx, actions...); err != nil {
		t.Fatal(err)
	}
}

// eval evaluates an expression in the page.
func eval[T any](t *testing.T, b *tab, expression string) T {
	t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[T](expression))
	if err != nil {
		t.Fatalf("%s: %v", expression, err)
	}
	return v
}

// waitFor waits until an expression is true. The browser's own way of waiting is not allowed by the page's policy.
func (b *tab) waitFor(t *testing.T, expression string) {
	t.Helper()
	for limit := time.Now().Add(hangLimit); !eval[bool](t, b, expression); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("never true: %s", expression)
		}
	}
}

// quiet fails the test if something complained, or if anything but the page was asked for.
func (b *tab) quiet(t *testing.T) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.trouble) > 0 {
		t.Errorf("the page complains: %s", strings.Join(b.trouble, "\n"))
	}
	for _, url := range b.requests {
		if len(b.requests) != 1 || !strings.HasPrefix(url, "file://") {
			t.Errorf("the page asked for %s", url)
		}
	}
}
