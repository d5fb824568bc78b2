package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
)

// drainFlags are the flags of "drain".
type drainFlags struct {
	scene  sceneOptions
	rounds int
	full   bool
	cells  []string
	delay  time.Duration
	limit  time.Duration
	json   string
}

// A drainCell is one row of the comparison: how many messages of which size are
// delivered, and how far away the primary is.
type drainCell struct {
	Size      letter.Sizes  `json:"size"`
	Messages  int           `json:"messages"`
	RoundTrip time.Duration `json:"round_trip_ns"`
}

func (c drainCell) String() string {
	s := fmt.Sprintf("%s:%d", c.Size, c.Messages)
	if c.RoundTrip > 0 {
		s += fmt.Sprintf("+%v", c.RoundTrip)
	}
	return s
}

var (
	drainShort = drainCell{Size: letter.Size4K, Messages: 5_000}
	drainLong  = drainCell{Size: letter.Size64K, Messages: 50_000}

	headlineDrains = []drainCell{drainShort, drainLong}
	fullDrains     = []drainCell{
		drainShort, {Size: letter.Size64K, Messages: 5_000},
		{Size: letter.Size4K, Messages: 50_000}, drainLong,
	}
)

const (
	// drainCeiling is how many connections to a primary there may be at a time: the
	// default of both sides.
	drainCeiling = 20
	// drainDelayedMax is the most messages that are drained over a distance, where
	// each takes long.
	drainDelayedMax = 5_000
	// drainMessagesMax is more than any disk holds.
	drainMessagesMax = 1_000_000_000
	// drainMessageBytes is what a message may take on a disk beside its content.
	drainMessageBytes = 4 << 10
)

func (a *app) drainCommand() *cobra.Command {
	f := drainFlags{scene: sceneOptions{name: "drain"}}
	cmd := &cobra.Command{
		Use:   "drain [--rounds N] [--full] [--cells SIZE:MESSAGES,...] [--delay TIME]",
		Short: "Compare how fast three nodes and one Postfix deliver a long queue",
		Long: `Compare how fast three nodes and one Postfix deliver the same queue to a primary
that is back, all on this host, in rounds: Postfix, the nodes, Postfix, the nodes,
... Only the ratios of one round mean anything, since the host is shared and its
speed changes; the table has their median and range.

Each side begins empty and is given all messages while its next hop refuses
connections. Nothing is done to hold them back: both sides try, find the next hop
dead, and defer. That is how a queue comes about behind a primary that is down, and
both commands below end what either side concluded from it; mail that was held by
an option (defer_transports, the hold queue) would come without Postfix' records of
the deferral, which it has to remove again. When every message is deferred (all of
Postfix' are in its queue "deferred", every node has all and calls the next hop
down) and the host has written out what it had in memory, the primary begins to
listen and the time runs: from the start of "holdfast domain flush" or "postqueue
-f" to the primary's last 250. No message can leave before that.

Both have a ceiling of 20 connections, their default. A primary that sees more at a
time is an error; so is a message that is lost, altered or not delivered to the end.
Copies beyond the first are counted. Postfix has Debian's defaults, but for a higher
limit of the message size, and logs to syslog. The nodes talk to each other by
mutual TLS, as always.

With --delay, cells of up to 5000 messages are measured once more with that round
trip to the primary: a proxy in this process holds all that is said, in either
direction, for half of it.

It says first how much disk it needs, and refuses where there is less. On two cores
the two cells of the last line take about six minutes a round, so the default, three
rounds, about 20; --full takes half as long again, and --delay two minutes more a
round.

Needs root, and the packages postfix and rsyslog. The last line is

  headline drain_5k_4k=X.XX drain_50k_64k=X.XX

with the ratios of messages per second, 0.00 for what was not measured; with --delay
the line before it is

  headline_delay drain_5k_4k=X.XX

The log entries of a row are those that Raft's log grew by from before the flush
until no node had a message left, per message.`,
		Example: `  holdfast-bench drain --bin bin
  holdfast-bench drain --bin bin --cells 4k:5000 --rounds 5 --delay 50ms`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.rounds < 1 || f.delay < 0 || f.limit < time.Minute {
				return usage(cmd, "--rounds is 1 at the least, --delay not negative, --limit a minute at the least")
			}
			cells := headlineDrains
			if f.full {
				cells = fullDrains
			}
			if len(f.cells) > 0 {
				var err error
				if cells, err = parseDrainCells(f.cells); err != nil {
					return usage(cmd, "--cells: %v", err)
				}
			}
			return a.drain(cmd.Context(), f, withDelay(cells, f.delay))
		},
	}
	binFlag(cmd, &f.scene) // there is no --keep: it would be gigabytes in each round
	flags := cmd.Flags()
	flags.IntVar(&f.rounds, "rounds", 3, "how many `rounds`")
	flags.BoolVar(&f.full, "full", false, "5000 and 50000 messages of both sizes")
	flags.StringSliceVar(&f.cells, "cells", nil, "only these: `SIZE:MESSAGES` of 4k or 64k, several separated by commas")
	flags.DurationVar(&f.delay, "delay", 0, "measure also with this round trip to the primary")
	flags.DurationVar(&f.limit, "limit", 20*time.Minute, "give up when one side of a cell takes longer")
	flags.StringVar(&f.json, "json", "", "write every result to this `file`")
	return cmd
}

// contentBytes are the sizes that can be drained.
var contentBytes = map[letter.Sizes]uint64{letter.Size4K: 4 << 10, letter.Size64K: 64 << 10}

func parseDrainCells(texts []string) ([]drainCell, error) {
	var cells []drainCell
	for _, text := range texts {
		size, messages, _ := strings.Cut(text, ":")
		n, err := strconv.Atoi(messages)
		if contentBytes[letter.Sizes(size)] == 0 || err != nil || n < 1 || n > drainMessagesMax {
			return nil, fmt.Errorf("%q: want for example 4k:5000", text)
		}
		c := drainCell{Size: letter.Sizes(size), Messages: n}
		if slices.Contains(cells, c) {
			return nil, fmt.Errorf("%v stands there twice", c)
		}
		cells = append(cells, c)
	}
	return cells, nil
}

// withDelay adds those of the cells that are measured with a round trip, too.
func withDelay(cells []drainCell, roundTrip time.Duration) []drainCell {
	all := slices.Clone(cells)
	for _, c := range cells {
		if c.RoundTrip = roundTrip; roundTrip > 0 && c.Messages <= drainDelayedMax {
			all = append(all, c)
		}
	}
	return all
}

// drainDisk is how much must be free for one side of the largest cell, and be
// left: three nodes write each message three times, Postfix once.
func drainDisk(cells []drainCell) uint64 {
	most := uint64(0)
	for _, c := range cells {
		most = max(most, 3*(millionNodeBytes+uint64(c.Messages)*(contentBytes[c.Size]+drainMessageBytes)))
	}
	return diskFreeMin + most
}

func (a *app) drain(ctx context.Context, f drainFlags, cells []drainCell) (err error) {
	need := drainDisk(cells)
	a.say("needs %d GiB of disk below %s, of which %d stay free", (need+1<<30-1)>>30, os.TempDir(), diskFreeMin>>30)
	if err := enoughSpace(os.TempDir(), need); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "holdfast-rival-")
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	// Postfix's daemons run under its own user.
	if err := os.Chmod(dir, 0o755); err != nil {
		return fmt.Errorf("open the directory to Postfix: %w", err)
	}
	return a.compareDrains(ctx, f, cells,
		func(ctx context.Context) (holder, error) { return a.openPostfix(ctx, filepath.Join(dir, "postfix")) },
		func(ctx context.Context) (holder, error) { return a.openNodes(ctx, f.scene) })
}

// A drainMatch is one cell of one round.
type drainMatch struct {
	Round    int         `json:"round"`
	Cell     drainCell   `json:"cell"`
	Postfix  drainResult `json:"postfix"`
	Holdfast drainResult `json:"holdfast"`
}

// ratio is how many times as fast the nodes were.
func (m drainMatch) ratio() float64 { return m.Holdfast.perSecond() / m.Postfix.perSecond() }

// fault says what must not be of either side's delivery, nil if all is well.
func (m drainMatch) fault() (err error) {
	for _, side := range []struct {
		name   string
		result drainResult
	}{{"Postfix", m.Postfix}, {"Holdfast", m.Holdfast}} {
		if fault := side.result.fault(); fault != nil {
			err = errors.Join(err, fmt.Errorf("round %d, %v, %s: %w", m.Round, m.Cell, side.name, fault))
		}
	}
	return err
}

// compareDrains plays all cells in each round, and prints what came of it. What was
// delivered badly is an error, but no reason to keep the rest back.
func (a *app) compareDrains(ctx context.Context, f drainFlags, cells []drainCell, postfix, holdfast opener) error {
	matches := make([]drainMatch, 0, f.rounds*len(cells))
	var faulty error
	for round := 1; round <= f.rounds; round++ {
		for _, c := range cells {
			m := drainMatch{Round: round, Cell: c}
			for _, side := range []struct {
				name   string
				open   opener
				result *drainResult
			}{{"Postfix", postfix, &m.Postfix}, {"Holdfast", holdfast, &m.Holdfast}} {
				a.say("round %d of %d, %v: %s", round, f.rounds, c, side.name)
				var err error
				if *side.result, err = a.drainSide(ctx, f.limit, side.open, c, uint64(round)); err != nil {
					return fmt.Errorf("round %d, %v, %s: %w", round, c, side.name, err)
				}
				a.say("round %d of %d, %v: %s %v", round, f.rounds, c, side.name, *side.result)
			}
			a.say("round %d of %d, %v: %.2f times", round, f.rounds, c, m.ratio())
			faulty = errors.Join(faulty, m.fault())
			matches = append(matches, m)
			// Each time anew, so that a run that breaks off leaves what it had.
			if err := writeResults(f.json, matches); err != nil {
				return err
			}
		}
	}
	a.printDrains(f, cells, matches)
	return faulty
}

func (a *app) printDrains(f drainFlags, cells []drainCell, matches []drainMatch) {
	fmt.Fprintf(a.out, "%-14s %10s %10s  %s\n", "cell", "postfix/s", "holdfast/s", "ratio (range); of the rest, what has two figures is of Postfix and of the nodes")
	medians := map[drainCell]float64{}
	for _, c := range cells {
		var postfix, holdfast, ratios, entries, postfixFirst, holdfastFirst []float64
		var postfixMost, holdfastMost int64
		postfixCopies, holdfastCopies, failed := 0, 0, 0
		for _, m := range matches {
			if m.Cell != c {
				continue
			}
			if m.fault() != nil {
				failed++
			}
			postfix, holdfast = append(postfix, m.Postfix.perSecond()), append(holdfast, m.Holdfast.perSecond())
			ratios, entries = append(ratios, m.ratio()), append(entries, m.Holdfast.entriesPerMessage())
			postfixFirst = append(postfixFirst, m.Postfix.First.Seconds()*1e3)
			holdfastFirst = append(holdfastFirst, m.Holdfast.First.Seconds()*1e3)
			postfixMost, holdfastMost = max(postfixMost, m.Postfix.ConnectionsMost), max(holdfastMost, m.Holdfast.ConnectionsMost)
			postfixCopies += m.Postfix.Ledger.Duplicates
			holdfastCopies += m.Holdfast.Ledger.Duplicates
		}
		medians[c] = median(ratios)
		fmt.Fprintf(a.out, "%-14v %10.1f %10.1f  %.2f (%.2f-%.2f); %.2f log entries a message; first after %.0f and %.0f ms; at most %d and %d connections; %d and %d duplicates",
			c, median(postfix), median(holdfast), median(ratios), slices.Min(ratios), slices.Max(ratios), median(entries),
			median(postfixFirst), median(holdfastFirst), postfixMost, holdfastMost, postfixCopies, holdfastCopies)
		if failed > 0 {
			fmt.Fprintf(a.out, "; FAILED in %d rounds", failed)
		}
		fmt.Fprintln(a.out)
	}
	if f.delay > 0 {
		delayed := drainShort
		delayed.RoundTrip = f.delay
		fmt.Fprintf(a.out, "headline_delay drain_5k_4k=%.2f\n", medians[delayed])
	}
	fmt.Fprintf(a.out, "headline drain_5k_4k=%.2f drain_50k_64k=%.2f\n", medians[drainShort], medians[drainLong])
}
