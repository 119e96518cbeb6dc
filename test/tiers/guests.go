package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/ktstr/ktstr-vmm/test/bed"
)

const (
	module   = "github.com/ktstr/ktstr-vmm"
	linuxPkg = module + "/test/linux"
	bedRoot  = "/src"    // this module's tree in the bed, where its tests expect to be
	bedTests = "/tests/" // what a suite is given by its environment

	bedBoots = 2 // at once: each has one processor
)

// suite is a test binary and how it is run.
type suite struct {
	label
	host   string // where it runs in the bed, one of bed.Hosts
	pkg    string
	binary string
	args   []string
	skip   []string          // regexps of tests
	dir    string            // of the package, in the module
	files  map[string]string // by the names of the environment variables that say where they are
	env    []string
	path   []string // what PATH begins with on this host
}

func runGuests(args []string) (bool, error) {
	c, err := parseChoice(args)
	if err != nil {
		return false, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp("", "tiers-*")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	b := &builder{dir: dir, go_: map[string]string{}}
	here, boots, err := plan(b, c)
	if errors.Is(err, bed.ErrMissing) { // the summary says what that means
		fmt.Fprintf(os.Stderr, "tiers: no tests in guests: %v\n", err)
		return true, nil
	}
	if err != nil {
		return false, err
	}
	e := &events{w: os.Stdout}
	ok := true
	for _, s := range here {
		good, err := runHere(ctx, e, s)
		if err != nil {
			return false, err
		}
		ok = ok && good
	}
	return runBoots(ctx, e, boots) && ok, nil
}

// plan says which suites run on this host, and which boots of the bed run which others.
func plan(b *builder, c choice) (here []suite, boots [][]suite, err error) {
	host, err := b.host()
	if err != nil {
		return nil, nil, err
	}
	if slices.Contains(c.tiers, "linux") {
		for _, p := range places {
			if !slices.Contains(c.backends, p.backend) || !slices.Contains(c.archs, p.arch) {
				continue
			}
			for _, kernel := range c.kernels {
				if !p.has(kernel) {
					continue
				}
				inBed := p.backend == "kvm" && !host.nativeFor(p.arch)
				s, err := b.linuxAt(p, kernel, inBed, c.run)
				if kernel == schedExt && errors.Is(err, bed.ErrMissing) { // the summary says what that means
					fmt.Fprintf(os.Stderr, "tiers: no tests on Linux %s: %v\n", kernel, err)
					continue
				}
				if err != nil {
					return nil, nil, err
				}
				if inBed {
					boots = append(boots, []suite{s})
					continue
				}
				// One more than processors, for some tests wait for a deadline most of their time.
				s.args = append(s.args, fmt.Sprintf("-test.parallel=%d", runtime.NumCPU()+1))
				here = append(here, s)
			}
		}
	}
	if slices.Contains(c.tiers, "machine") && slices.Contains(c.backends, "kvm") {
		more, err := planMachine(b, c, host)
		return here, append(boots, more...), err
	}
	return here, boots, nil
}

// planMachine is plan for the machine tier: on KVM in the bed, of each host that this one is not.
func planMachine(b *builder, c choice, host hostHas) (boots [][]suite, err error) {
	if slices.Contains(c.archs, "x86_64") && !host.kvm {
		suites, err := b.machine(c)
		if err != nil {
			return nil, err
		}
		if len(suites) > 0 {
			boots = append(boots, suites)
		}
	}
	if !slices.Contains(c.archs, "arm64") {
		return boots, nil
	}
	for _, name := range []string{"arm64-a72", "arm64-vhe"} {
		if err := bed.Hosts[name].Missing(); err != nil { // the summary says what that means
			fmt.Fprintf(os.Stderr, "tiers: no tests in the bed's %s: %v\n", name, err)
			continue
		}
		suites, err := b.cross(c, name)
		if err != nil {
			return nil, err
		}
		boots = append(boots, suites)
	}
	return boots, nil
}

func (s suite) name() string { return s.pkg + " " + s.label.String() }

// arguments are the test binary's.
func (s suite) arguments() []string {
	if len(s.skip) == 0 {
		return s.args
	}
	return append(slices.Clip(s.args), "-test.skip="+strings.Join(s.skip, "|"))
}

// runHere runs a suite on this host.
func runHere(ctx context.Context, e *events, s suite) (bool, error) {
	out, err := e.of(s.name())
	if err != nil {
		return false, err
	}
	cmd := exec.CommandContext(ctx, s.binary, s.arguments()...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, out, out
	cmd.Env = append(os.Environ(), s.env...)
	cmd.Env = append(cmd.Env, "PATH="+strings.Join(append(s.path, os.Getenv("PATH")), ":"))
	for name, path := range s.files {
		cmd.Env = append(cmd.Env, name+"="+path)
	}
	cmd.WaitDelay = 10 * time.Second // what a killed test leaves behind may hold the pipe
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return false, errors.Join(err, out.end(-1))
	}
	return err == nil, out.end(cmd.ProcessState.ExitCode())
}

// runBoots runs boots of the bed, some at once, and reports whether all went well.
func runBoots(ctx context.Context, e *events, boots [][]suite) bool {
	var all sync.WaitGroup
	var bad atomic.Bool
	free := make(chan struct{}, bedBoots)
	for _, suites := range boots {
		free <- struct{}{}
		all.Go(func() {
			defer func() { <-free }()
			ok, err := runBoot(ctx, e, suites)
			if err != nil {
				fmt.Fprintf(os.Stderr, "tiers: the bed: %v\n", err)
			}
			if err != nil || !ok {
				bad.Store(true)
			}
		})
	}
	all.Wait()
	return !bad.Load()
}

// runBoot runs suites in one boot of the bed.
func runBoot(ctx context.Context, e *events, suites []suite) (bool, error) {
	b := bed.Bed{Host: bed.Hosts[suites[0].host], Files: map[string]string{}}
	if err := addModule(b.Files); err != nil {
		return false, err
	}
	for _, tool := range []string{"env", "promtool"} {
		if path, err := exec.LookPath(tool); err == nil && b.Host.Arch == runtime.GOARCH {
			b.Programs = append(b.Programs, path)
		}
	}
	commands := make([]*bed.Command, 0, len(suites))
	outs := make([]*output, 0, len(suites))
	for _, s := range suites {
		program := bedTests + filepath.Base(s.binary)
		b.Files[program] = s.binary
		c := &bed.Command{Dir: filepath.Join(bedRoot, s.dir), Env: s.env, Args: append([]string{program}, s.arguments()...)}
		for name, path := range s.files {
			b.Files[bedTests+name] = path
			c.Env = append(c.Env, name+"="+bedTests+name)
		}
		out, err := e.of(s.name())
		if err != nil {
			return false, err
		}
		c.Output = out
		commands, outs = append(commands, c), append(outs, out)
	}
	var console strings.Builder
	err := b.Run(ctx, commands, &console)
	if err != nil {
		err = fmt.Errorf("%w\nits console:\n%s", err, console.String())
	}
	ok := true
	for i, c := range commands {
		err = errors.Join(err, outs[i].end(c.Code))
		ok = ok && c.Code == 0
	}
	return ok, err
}

// addModule adds this module's tree, without what is hidden or built.
func addModule(files map[string]string) error {
	entries, err := os.ReadDir(".")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && e.Name() != "bin" {
			files[filepath.Join(bedRoot, e.Name())] = e.Name()
		}
	}
	return nil
}
