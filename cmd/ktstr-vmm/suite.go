package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/ktstr/ktstr-vmm/pkg/config"
	"github.com/ktstr/ktstr-vmm/pkg/report"
	"github.com/ktstr/ktstr-vmm/pkg/run"
	"github.com/ktstr/ktstr-vmm/pkg/suite"
	"github.com/ktstr/ktstr-vmm/pkg/tally"
)

const (
	defaultResults = "ktstr-results"
	// hurrySignals is how many signals end a suite at once, whatever its runs do.
	hurrySignals = 3
	// maxPendingLines is how much text waits for a slow reader, in bytes. What is more is left out; the report has it.
	maxPendingLines = 4 << 20
)

// suiteOptions are what the suite command is told.
type suiteOptions struct {
	results   string
	jobs      int
	filter    string
	shard     string
	retries   int
	failFast  bool
	list      bool
	durations string
	exporter  string
	delivery
}

func suiteCommand() *cobra.Command {
	o := suiteOptions{}
	c := &cobra.Command{
		Use:   "suite FILE",
		Short: "Do the runs of a suite, and give one verdict",
		Args:  named("suite", "FILE", 1, 1),
		RunE:  func(c *cobra.Command, args []string) error { return o.run(c, args[0]) },
	}
	f := c.Flags()
	f.SortFlags = false
	f.StringVar(&o.results, "results", defaultResults, "folder for the reports, and a folder of each run's files")
	f.IntVar(&o.jobs, "jobs", 0, "how many runs at a time; 0 for as many as the host's processors and memory carry")
	f.StringVar(&o.filter, "filter", "", "a regular expression: only runs whose name or a label it matches")
	f.StringVar(&o.shard, "shard", "", "I/N: only the I-th of N parts of the suite, I from 1")
	f.IntVar(&o.retries, "retries", 0,
		"how many more attempts a run has that does not pass; it is flaky if one of them does")
	f.BoolVar(&o.failFast, "fail-fast", false, "start nothing more after the first run that failed")
	f.BoolVar(&o.list, "list", false, "print the names of the runs, and run nothing")
	f.StringVar(&o.durations, "durations", "",
		"an earlier results folder or suite.json, by whose durations shards are balanced")
	f.StringVar(&o.textfile, "metrics-textfile", "",
		"FILE.prom for node_exporter's textfile collector, to which the metrics of all runs are added")
	f.StringVar(&o.push, "metrics-push", "", "the URL of a Pushgateway, which gets the sum of all runs' metrics")
	f.StringVar(&o.exporter, "exporter", config.ExporterAuto,
		"the socket of ktstr-vmm exporter; auto is where it is by default; none")
	mustComplete(c, "results", completeFolders)
	mustComplete(c, "durations", completeFolders)
	c.AddCommand(suiteMergeCommand(), suiteCompareCommand())
	return c
}

// named checks how many arguments a command has, of at least and at most so many.
func named(command, what string, least, most int) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) < least || len(args) > most {
			return fmt.Errorf("%s takes %s, %d were given", command, what, len(args))
		}
		return nil
	}
}

// chosen are the runs that the flags leave, the names of those of all shards, and what earlier runs took.
type chosen struct {
	suite     *suite.Suite
	runs      []*suite.Run
	names     []string
	shard     *suite.Shard
	durations map[string]float64
}

func (o *suiteOptions) choose(file string) (c chosen, err error) {
	if o.jobs < 0 || o.jobs > 10000 {
		return c, fmt.Errorf("--jobs %d: it can be 0 to 10000", o.jobs)
	}
	if o.retries < 0 || o.retries > suite.MaxRetries {
		return c, fmt.Errorf("--retries %d: it can be 0 to %d", o.retries, suite.MaxRetries)
	}
	if o.push != "" {
		if err := tally.CheckURL(o.push); err != nil {
			return c, fmt.Errorf("--metrics-push %q: %w", o.push, err)
		}
	}
	matching, err := regexp.Compile(o.filter)
	if err != nil {
		return c, fmt.Errorf("--filter %q: %w", o.filter, err)
	}
	if o.shard != "" {
		shard, err := suite.ParseShard(o.shard)
		if err != nil {
			return c, fmt.Errorf("--%w", err)
		}
		c.shard = &shard
	}
	if c.suite, err = suite.Open(file, os.Environ()); err != nil {
		return c, err
	}
	if err := o.recorded(&c); err != nil {
		return c, err
	}
	all := suite.Filter(c.suite.Runs, matching)
	for _, x := range all {
		c.names = append(c.names, x.Name)
	}
	c.runs = all
	if c.shard != nil { // of the whole suite, so that a run's shard does not depend on the filter
		c.runs = suite.Filter(c.shard.Of(c.suite.Runs, c.durations), matching)
	}
	if len(all) == 0 {
		return c, fmt.Errorf("--filter %q matches no name and no label of %d runs", o.filter, len(c.suite.Runs))
	}
	return c, nil
}

// recorded reads what earlier runs took. Shards are balanced by what is named alone: each machine has to have the same.
func (o *suiteOptions) recorded(c *chosen) error {
	path := o.durations
	if path == "" && c.shard == nil && !o.list {
		path = o.results
	}
	if path == "" {
		return nil
	}
	old, err := suite.ReadReport(path)
	if err != nil {
		if o.durations == "" { // there may be none
			return nil
		}
		return fmt.Errorf("--durations: %w", err)
	}
	c.durations = old.Durations()
	return nil
}

func (o *suiteOptions) run(c *cobra.Command, file string) error {
	chosen, err := o.choose(file)
	if err != nil {
		return err
	}
	if o.list {
		for _, x := range chosen.runs {
			if _, err := fmt.Fprintln(c.OutOrStdout(), report.Printable(x.Name)); err != nil {
				return err
			}
		}
		return nil
	}
	results, err := openResults(o.results)
	if err != nil {
		return err
	}
	defer results.Close()
	return o.do(c, chosen, results)
}

// openResults opens the folder that --results names.
func openResults(dir string) (*suite.Results, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	results, err := suite.OpenResults(abs)
	if err != nil {
		return nil, fmt.Errorf("--results: %w", err)
	}
	return results, nil
}

// do does the chosen runs, and shows them.
func (o *suiteOptions) do(c *cobra.Command, chosen chosen, results *suite.Results) error {
	program, err := os.Executable()
	if err != nil {
		return err
	}
	out := report.NewStream(c.OutOrStdout())
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), run.DefaultFlushLimit)
		defer cancel()
		_ = out.Close(ctx) // there is no place left to say it
	}()
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // as nohup does
		signal.Notify(signals, syscall.SIGHUP)
	}
	defer signal.Stop(signals)
	passed := make(chan os.Signal, hurrySignals)
	p := newProgress(out, c.OutOrStdout(), chosen)
	r := &suite.Runner{Program: program, Version: version(), Environ: os.Environ(), Results: results, Jobs: o.jobs,
		Retries: o.retries, FailFast: o.failFast, Shard: chosen.shard, Signals: passed, OnStart: p.started, OnEnd: p.ended,
		Extra: []string{"--exporter=" + o.exporter}}
	sum := tally.New(0)
	if o.wanted() {
		r.OnMetrics = func(result *suite.Result, path string) {
			if err := add(sum, chosen.suite.Name, result, path); err != nil {
				p.warn(err)
			}
		}
	}
	type answer struct {
		report *suite.Report
		err    error
	}
	done := make(chan answer, 1) // the folder's file system may never answer
	go func() {
		rep, err := r.Run(chosen.suite.Name, chosen.names, chosen.runs)
		done <- answer{rep, err}
	}()
	for got := 0; ; {
		select {
		case a := <-done:
			p.close()
			if a.report == nil {
				return a.err
			}
			o.suite = chosen.suite.Name
			o.deliver(sum, signals, p.warn)
			fmt.Fprintln(out, a.report.Summary())
			if a.err != nil {
				return fmt.Errorf("the reports could not be written: %w", a.err)
			}
			fmt.Fprintf(out, "reports: %s\n", report.Printable(o.results))
			return codeOf(a.report.ExitCode())
		case sig := <-signals:
			if got++; got == hurrySignals {
				return &exitError{code: 128 + int(sig.(syscall.Signal)), err: fmt.Errorf(
					"%d signals: the suite is over, and its reports are not whole", got)}
			}
			select {
			case passed <- sig:
			default: // the runs have had it
			}
		}
	}
}

// codeOf is an exit code as a command returns it.
func codeOf(code int) error {
	if code == 0 {
		return nil
	}
	return &exitError{code: code}
}

// add adds a run's metrics to the suite's. One that left none is counted, too.
func add(sum *tally.Tally, name string, r *suite.Result, path string) error {
	err := sum.ReadTextfile(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	outcome := cmp.Or(string(r.Outcome), tally.Lost)
	return sum.End(tally.Labels{Suite: name, Arch: r.Arch, Accelerator: r.Accelerator}, outcome,
		time.Duration(r.Duration*float64(time.Second)))
}

// show writes a command's result, whose reader may be stuck.
func show(c *cobra.Command, write func(io.Writer) error) error {
	var b strings.Builder
	if err := write(&b); err != nil {
		return err
	}
	say(c.OutOrStdout(), b.String())
	return nil
}

func suiteMergeCommand() *cobra.Command {
	var results string
	c := &cobra.Command{
		Use:   "merge DIR...",
		Short: "Make one report of the results folders of a suite's shards",
		Args:  named("suite merge", "one or more DIR", 1, 10000),

		ValidArgsFunction: completeFolders,
		RunE: func(c *cobra.Command, dirs []string) error {
			m, err := suite.NewMerger(dirs)
			if err != nil {
				return err
			}
			if m.Has(results) {
				return fmt.Errorf("--results %q is one of the folders to be merged: name another", results)
			}
			into, err := openResults(results)
			if err != nil {
				return err
			}
			defer into.Close()
			r, err := m.Write(into)
			if err != nil {
				return err
			}
			if err := show(c, r.Text); err != nil {
				return err
			}
			return codeOf(r.ExitCode())
		},
	}
	c.Flags().StringVar(&results, "results", defaultResults, "folder for the report, and a folder of each run's files")
	mustComplete(c, "results", completeFolders)
	return c
}

func suiteCompareCommand() *cobra.Command {
	var format string
	var slower float64
	c := &cobra.Command{
		Use:   "compare OLD NEW",
		Short: "Show what newly fails, is flaky or got slower, from one results folder or suite.json to another",
		Args:  named("suite compare", "OLD and NEW", 2, 2),

		ValidArgsFunction: completeFolders,
		RunE: func(c *cobra.Command, args []string) error {
			formats := map[string]func(*suite.Comparison, io.Writer) error{
				"text": (*suite.Comparison).Text, "json": (*suite.Comparison).JSON, "markdown": (*suite.Comparison).Markdown,
			}
			write := formats[format]
			switch {
			case write == nil:
				return fmt.Errorf("--format %q: it is one of text, json, markdown", format)
			case !(slower >= 1 && slower <= 1000):
				return fmt.Errorf("--slower %v: it can be 1 to 1000", slower)
			}
			old, err := suite.ReadReport(args[0])
			if err != nil {
				return err
			}
			now, err := suite.ReadReport(args[1])
			if err != nil {
				return err
			}
			comparison := suite.Compare(old, now, slower)
			if err := show(c, func(w io.Writer) error { return write(comparison, w) }); err != nil {
				return err
			}
			if comparison.Worse() {
				return codeOf(1)
			}
			return nil
		},
	}
	c.Flags().StringVar(&format, "format", "text", "text, json, markdown")
	c.Flags().Float64Var(&slower, "slower", 1.5, "by which factor a run has to be slower to be shown")
	mustComplete(c, "format", cobra.FixedCompletions([]string{"text", "json", "markdown"},
		cobra.ShellCompDirectiveNoFileComp))
	return c
}
