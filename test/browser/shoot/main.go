// Command shoot makes pictures for the documentation, in PNG:
//
//	shoot page OUT.png [-dark] [-width N] [-height N] [-show SELECTOR] FILE.html
//	shoot terminal OUT.png [-size COLSxROWS] [-until REGEXP] -- CMD [ARG...]
//
// The first one shows a page in Chromium. The second one shows the screen of a terminal in which a command runs: when
// it has ended, or when the screen first shows what the regular expression matches.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"html"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/creack/pty"
	"github.com/hinshun/vt10x"
)

// limit is how long a picture may take.
const limit = time.Minute

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "shoot:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 {
		return errors.New("usage: shoot page OUT.png FILE.html, or: shoot terminal OUT.png -- CMD")
	}
	f := flag.NewFlagSet(args[0], flag.ContinueOnError)
	v := view{out: args[1]}
	f.BoolVar(&v.dark, "dark", false, "dark")
	f.Int64Var(&v.width, "width", 1000, "of the page")
	f.Int64Var(&v.height, "height", 800, "of the page")
	f.StringVar(&v.show, "show", "", "an element that is opened and scrolled to")
	size := f.String("size", "100x24", "of the terminal")
	until := f.String("until", "", "what the terminal shows")
	if err := f.Parse(args[2:]); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	switch args[0] {
	case "page":
		path, err := filepath.Abs(f.Arg(0))
		if err != nil {
			return err
		}
		return v.page(ctx, path)
	case "terminal":
		text, err := terminal(ctx, *size, *until, f.Args())
		if err != nil {
			return err
		}
		file, err := os.CreateTemp("", "shoot*.html")
		if err != nil {
			return err
		}
		defer os.Remove(file.Name())
		if _, err := file.WriteString(text); err != nil {
			return err
		}
		v.width, v.height = 1, 1 // all of it
		return errors.Join(file.Close(), v.page(ctx, file.Name()))
	}
	return fmt.Errorf("%q: it is page or terminal", args[0])
}

// view is how a page is looked at.
type view struct {
	out           string
	width, height int64
	dark          bool
	show          string
}

// page writes a picture of a page, of a terminal's of all of it.
func (v view) page(ctx context.Context, path string) error {
	profile, err := os.MkdirTemp("", "shoot")
	if err != nil {
		return err
	}
	defer os.RemoveAll(profile)
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath("chromium"), chromedp.NoSandbox,
		chromedp.UserDataDir(profile), chromedp.Flag("hide-scrollbars", true))
	ctx, cancel := chromedp.NewExecAllocator(ctx, options...)
	defer cancel()
	ctx, cancel = chromedp.NewContext(ctx)
	defer cancel()
	scheme := "light"
	if v.dark {
		scheme = "dark"
	}
	if _, err := chromedp.Call(ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}); err != nil {
		return err
	}
	err = chromedp.Do(ctx, chromedp.EmulateViewport(v.width, v.height), chromedp.Navigate("file://"+path))
	if err != nil {
		return err
	}
	shot := chromedp.CaptureScreenshot()
	if v.width == 1 {
		shot = chromedp.Screenshot(chromedp.CSS("pre"))
	} else if v.show != "" {
		show := fmt.Sprintf(`(() => {
			const target = document.querySelector(%q);
			for (let x = target; x; x = x.parentElement) x.open = true;
			scrollTo(0, target.getBoundingClientRect().top + scrollY - 60);
			return true;
		})()`, v.show)
		if _, err := chromedp.Run(ctx, chromedp.Evaluate[bool](show)); err != nil {
			return err
		}
	}
	picture, err := chromedp.Run(ctx, shot)
	if err != nil {
		return err
	}
	return os.WriteFile(v.out, picture, 0o644)
}

// terminal runs a command in a terminal and returns the screen as HTML.
func terminal(ctx context.Context, size, until string, args []string) (string, error) {
	var cols, rows int
	if _, err := fmt.Sscanf(size, "%dx%d", &cols, &rows); err != nil || len(args) == 0 {
		return "", fmt.Errorf("-size %s, and a command of %d words: want COLSxROWS, and a command", size, len(args))
	}
	wanted, err := regexp.Compile(until)
	if err != nil {
		return "", err
	}
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Env = append(os.Environ(), "TERM=xterm-256color", fmt.Sprintf("COLUMNS=%d", cols), fmt.Sprintf("LINES=%d", rows))
	f, err := pty.StartWithSize(c, &pty.Winsize{Cols: uint16(cols), Rows: uint16(rows)})
	if err != nil {
		return "", err
	}
	defer f.Close()
	screen := vt10x.New(vt10x.WithSize(cols, rows))
	seen := false
	for p := make([]byte, 32<<10); !seen; {
		n, err := f.Read(p)
		if _, err := screen.Write(p[:n]); err != nil {
			return "", err
		}
		seen = until != "" && wanted.MatchString(screen.String())
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.EIO) { // the command has closed it
			break
		}
		if err != nil {
			return "", err
		}
	}
	text := render(screen, cols, rows)
	_ = c.Process.Signal(syscall.SIGTERM) // it may have ended
	_, _ = io.Copy(io.Discard, f)
	_ = c.Wait() // commands that fail are shown, too
	if until != "" && !seen {
		return "", fmt.Errorf("the command has ended, and the screen never showed %q: %s", until, text)
	}
	return text, nil
}

// palette are a terminal's first colours.
var palette = []string{"#20262d", "#ff7b72", "#6fd583", "#e3b341", "#79b8ff", "#d2a8ff", "#5fd3c7", "#d5dbe3",
	"#7d8894", "#ffa198", "#8ce99f", "#f0cf7a", "#a5d0ff", "#e2c5ff", "#8fe9df", "#ffffff"}

// colour is a terminal's colour in CSS.
func colour(c vt10x.Color) string {
	switch {
	case c == vt10x.DefaultFG:
		return "#d5dbe3"
	case c == vt10x.DefaultBG:
		return "#14191f"
	case int(c) < len(palette):
		return palette[c]
	case c < 256:
		level := []int{0, 95, 135, 175, 215, 255}
		if n := int(c) - 16; n < 216 {
			return fmt.Sprintf("rgb(%d,%d,%d)", level[n/36], level[n/6%6], level[n%6])
		}
		grey := (int(c)-232)*10 + 8
		return fmt.Sprintf("rgb(%d,%d,%d)", grey, grey, grey)
	}
	return fmt.Sprintf("#%06x", uint32(c)&(1<<24-1))
}

// bold is a cell's mode, as vt10x has it.
const bold = 1 << 2

// render is a terminal's screen as HTML, without the empty lines at its end.
func render(screen vt10x.Terminal, cols, rows int) string {
	var b strings.Builder
	b.WriteString(`<!DOCTYPE html><meta charset="utf-8"><style>body { margin: 0 } pre { display: inline-block;
		margin: 0; padding: 14px 18px; background: #14191f; font: 14px/1.35 "DejaVu Sans Mono", monospace }</style><pre>`)
	lines := 0
	for y := range rows {
		for x := range cols {
			if c := screen.Cell(x, y); c.Char != 0 && c.Char != ' ' {
				lines = y + 1
			}
		}
	}
	for y := range lines {
		for x := range cols {
			c := screen.Cell(x, y)
			front, back := colour(c.FG), colour(c.BG)
			weight := "normal"
			if c.Mode&bold != 0 {
				weight = "bold"
			}
			char := c.Char
			if char == 0 {
				char = ' '
			}
			fmt.Fprintf(&b, `<span style="color:%s;background:%s;font-weight:%s">%s</span>`, front, back, weight,
				html.EscapeString(string(char)))
		}
		b.WriteString("\n")
	}
	b.WriteString("</pre>")
	return b.String()
}
