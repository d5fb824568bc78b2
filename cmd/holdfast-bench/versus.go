package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/rival"
)

// versusFlags are the flags of "versus-postfix".
type versusFlags struct {
	scene    sceneOptions
	rounds   int
	full     bool
	cells    []string
	duration time.Duration
	json     string
}

// A cell is one row of the comparison.
type cell struct {
	Size     load.Sizes `json:"size"`
	Sessions int        `json:"sessions"`
}

func (c cell) String() string { return fmt.Sprintf("%s:%d", c.Size, c.Sessions) }

var (
	headlineCells = []cell{{load.Mix, 100}, {load.Mix, 20}, {load.Size4K, 100}}
	fullCells     = []cell{
		{load.Mix, 20}, {load.Mix, 100}, {load.Size4K, 20}, {load.Size4K, 100},
		{load.Size64K, 20}, {load.Size64K, 100}, {load.Size1M, 20}, {load.Size1M, 100},
	}
)

func (a *app) versusCommand() *cobra.Command {
	f := versusFlags{scene: sceneOptions{name: "versus"}}
	cmd := &cobra.Command{
		Use:   "versus-postfix [--rounds N] [--full] [--cells SIZE:SESSIONS,...]",
		Short: "Compare three nodes with one Postfix, both on this host",
		Long: `Compare how fast three nodes and one Postfix accept mail, both on this host, in
rounds: Postfix, the nodes, Postfix, the nodes, ... Only the ratios of one round
mean anything, since the host is shared and its speed changes; the table has their
median and range.

Both get the same load (see "accept"), one message per connection, in the clear.
Both hold it: the next hop is down. The nodes talk to each other by mutual TLS, as
always. Postfix has Debian's defaults, but for a higher limit of the message size,
and logs to syslog. Each cell starts with an empty queue on both sides.

Needs root, and the packages postfix and rsyslog. The last line is

  headline mix_100=X.XX mix_20=X.XX kb4_100=X.XX

with the ratios of accepted messages per second, 0.00 for what was not measured.
Messages that were not accepted are an error, with the figures printed all the same.`,
		Example: `  holdfast-bench versus-postfix --bin bin
  holdfast-bench versus-postfix --bin bin --cells 4k:100 --rounds 3`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cells := headlineCells
			if f.full {
				cells = fullCells
			}
			if len(f.cells) > 0 {
				var err error
				if cells, err = parseCells(f.cells); err != nil {
					return usage(cmd, "--cells: %v", err)
				}
			}
			if f.rounds < 1 || f.duration < time.Second {
				return usage(cmd, "--rounds is 1 at the least, --duration a second")
			}
			return a.versus(cmd.Context(), f, cells)
		},
	}
	sceneFlags(cmd, &f.scene)
	flags := cmd.Flags()
	flags.IntVar(&f.rounds, "rounds", 5, "how many `rounds`")
	flags.BoolVar(&f.full, "full", false, "all sizes, with 20 and 100 sessions each")
	flags.StringSliceVar(&f.cells, "cells", nil, "only these: `SIZE:SESSIONS`, several separated by commas")
	flags.DurationVar(&f.duration, "duration", 10*time.Second, "how long one side of a cell takes")
	flags.StringVar(&f.json, "json", "", "write every result to this `file`")
	return cmd
}

func parseCells(texts []string) ([]cell, error) {
	var cells []cell
	for _, text := range texts {
		size, sessions, ok := strings.Cut(text, ":")
		n, err := strconv.Atoi(sessions)
		if !ok || err != nil || n < 1 || !slices.Contains(load.AllSizes(), load.Sizes(size)) {
			return nil, fmt.Errorf("%q: want for example 4k:100", text)
		}
		c := cell{load.Sizes(size), n}
		if slices.Contains(cells, c) {
			return nil, fmt.Errorf("%v stands there twice", c)
		}
		cells = append(cells, c)
	}
	return cells, nil
}

// A match is one cell of one round.
type match struct {
	Round    int         `json:"round"`
	Cell     cell        `json:"cell"`
	Postfix  load.Result `json:"postfix"`
	Holdfast load.Result `json:"holdfast"`
}

// ratio is how many times as much the nodes accepted.
func (m match) ratio() float64 { return m.Holdfast.PerSecond() / m.Postfix.PerSecond() }

// failures is how many messages were not accepted, on either side.
func (m match) failures() int { return m.Postfix.Failures() + m.Holdfast.Failures() }

// dotRatio compares the 99th percentiles of the reply to the final dot.
func (m match) dotRatio() float64 { return float64(m.Postfix.Dot.P99) / float64(m.Holdfast.Dot.P99) }

const (
	// diskFreeMin is what must be free before a comparison begins.
	diskFreeMin = 10 << 30
	// cellBytesMax bounds what one side of a cell is given: the nodes write it
	// three times.
	cellBytesMax = 2500 << 20
)

// A side gives a load to one of the two that are compared, new and empty.
type side func(context.Context, load.Options) (load.Result, error)

func (a *app) versus(ctx context.Context, f versusFlags, cells []cell) (err error) {
	dir, err := os.MkdirTemp("", "holdfast-rival-")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Postfix's daemons run under its own user.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("open the directory to Postfix: %w", err)
	}
	if err := enoughSpace(dir, diskFreeMin); err != nil {
		return err
	}
	return a.compare(ctx, f, cells,
		func(ctx context.Context, o load.Options) (load.Result, error) {
			return a.againstPostfix(ctx, filepath.Join(dir, "postfix"), nil, o)
		},
		func(ctx context.Context, o load.Options) (load.Result, error) {
			return a.againstHoldfast(ctx, f.scene, o)
		})
}

// compare plays all cells in each round, and prints what came of it. Messages
// that failed are an error, but no reason to keep the rest back.
func (a *app) compare(ctx context.Context, f versusFlags, cells []cell, postfix, holdfast side) error {
	matches := make([]match, 0, f.rounds*len(cells))
	for round := 1; round <= f.rounds; round++ {
		for _, c := range cells {
			m := match{Round: round, Cell: c}
			o := load.Options{
				Sessions: c.Sessions, Sizes: c.Size, Duration: f.duration, BytesMax: cellBytesMax,
				Recipient: "user@" + domains()[0], Sender: "sender@sender.example",
				Run: fmt.Sprintf("r%d", round), Seed: uint64(round),
			}
			var err error
			if m.Postfix, err = played(postfix(ctx, o)); err != nil {
				return fmt.Errorf("round %d, %v, Postfix: %w", round, c, err)
			}
			if m.Holdfast, err = played(holdfast(ctx, o)); err != nil {
				return fmt.Errorf("round %d, %v, Holdfast: %w", round, c, err)
			}
			a.say("round %d of %d, %v: Postfix %v", round, f.rounds, c, m.Postfix)
			a.say("round %d of %d, %v: Holdfast %v: %.2f times", round, f.rounds, c, m.Holdfast, m.ratio())
			matches = append(matches, m)
			// Each time anew, so that a run that breaks off leaves what it had.
			if err := writeResults(f.json, matches); err != nil {
				return err
			}
		}
	}
	a.printMatches(cells, matches)
	return failures(matches)
}

// played refuses a result with which nothing can be compared.
func played(r load.Result, err error) (load.Result, error) {
	if err == nil && r.Accepted == 0 {
		err = fmt.Errorf("nothing was accepted: %v", r)
	}
	return r, err
}

// failures names each cell in which messages were not accepted: its figures are
// of another load than the other side's.
func failures(matches []match) (err error) {
	for _, m := range matches {
		if m.failures() > 0 {
			err = errors.Join(err, fmt.Errorf("round %d, %v: %d messages failed at Postfix (%s), %d at Holdfast (%s)", m.Round, m.Cell,
				m.Postfix.Failures(), orNone(m.Postfix.FirstFailure), m.Holdfast.Failures(), orNone(m.Holdfast.FirstFailure)))
		}
	}
	return err
}

// writeResults writes what a benchmark saw, unless file is "".
func writeResults(file string, results any) error {
	if file == "" {
		return nil
	}
	data, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.WriteFile(file, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

func orNone(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// enoughSpace refuses to begin on a disk that a benchmark could fill.
func enoughSpace(dir string, want uint64) error {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return fmt.Errorf("look at the disk below %s: %w", dir, err)
	}
	if free := s.Bavail * uint64(s.Bsize); free < want {
		return fmt.Errorf("%s has %d MiB free; this needs %d", dir, free>>20, want>>20)
	}
	return nil
}

// againstPostfix gives the load to a Postfix with an empty queue, whose processes
// have environment beside their own.
func (a *app) againstPostfix(ctx context.Context, dir string, environment map[string]string, o load.Options) (r load.Result, err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return r, fmt.Errorf("make directory: %w", err)
	}
	address, err := fleet.FreeAddress()
	if err != nil {
		return r, err
	}
	down, err := fleet.FreeAddress()
	if err != nil {
		return r, err
	}
	p, err := rival.New(rival.Options{Dir: dir, Address: address, Domain: domains()[0], NextHop: down, Environment: environment})
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, p.Close(context.WithoutCancel(ctx)), os.RemoveAll(dir)) }()
	if err := p.Start(ctx); err != nil {
		return r, err
	}
	o.Targets = []string{address}
	return load.Run(ctx, o)
}

// againstHoldfast gives the load to three new nodes.
func (a *app) againstHoldfast(ctx context.Context, so sceneOptions, o load.Options) (r load.Result, err error) {
	quiet := *a
	quiet.quiet = true
	s, err := quiet.openScene(ctx, so)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, s.fleet.Fallen(), s.close()) }()
	if err := s.settle(ctx); err != nil {
		return r, err
	}
	o.Targets = s.fleet.Addresses()
	return load.Run(ctx, o)
}

func (a *app) printMatches(cells []cell, matches []match) {
	fmt.Fprintf(a.out, "%-9s %12s %12s  %s\n", "cell", "postfix/s", "holdfast/s", "ratio (range); p99 of the dot's reply; ratio of the p99")
	medians := map[cell]float64{}
	for _, c := range cells {
		var postfix, holdfast, ratios, dots, postfixDots, holdfastDots []float64
		failed := 0
		for _, m := range matches {
			if m.Cell != c {
				continue
			}
			failed += m.failures()
			postfix = append(postfix, m.Postfix.PerSecond())
			holdfast = append(holdfast, m.Holdfast.PerSecond())
			ratios, dots = append(ratios, m.ratio()), append(dots, m.dotRatio())
			postfixDots = append(postfixDots, m.Postfix.Dot.P99.Seconds()*1e3)
			holdfastDots = append(holdfastDots, m.Holdfast.Dot.P99.Seconds()*1e3)
		}
		medians[c] = median(ratios)
		fmt.Fprintf(a.out, "%-9v %12.1f %12.1f  %.2f (%.2f-%.2f); %.1f ms against %.1f ms; %.2f (%.2f-%.2f)%s\n",
			c, median(postfix), median(holdfast), median(ratios), slices.Min(ratios), slices.Max(ratios),
			median(holdfastDots), median(postfixDots), median(dots), slices.Min(dots), slices.Max(dots), note(failed))
	}
	fmt.Fprintf(a.out, "headline mix_100=%.2f mix_20=%.2f kb4_100=%.2f\n",
		medians[headlineCells[0]], medians[headlineCells[1]], medians[headlineCells[2]])
}

// note stands behind the row of a cell that is worth nothing.
func note(failed int) string {
	if failed == 0 {
		return ""
	}
	return fmt.Sprintf("; %d FAILED", failed)
}

// median of an even number is the mean of the two in the middle, of nothing 0.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}
