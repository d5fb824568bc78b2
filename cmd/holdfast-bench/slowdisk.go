package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/rival"
)

// slowDiskFlags are the flags of "slow-disk".
type slowDiskFlags struct {
	scene    sceneOptions
	rounds   int
	duration time.Duration
	delay    time.Duration
	json     string
}

func (a *app) slowDiskCommand() *cobra.Command {
	f := slowDiskFlags{scene: sceneOptions{name: "slow"}}
	cmd := &cobra.Command{
		Use:   "slow-disk [--bin DIR] [--rounds N] [--delay TIME]",
		Short: "Compare three nodes with one Postfix when each sync takes long",
		Long: `Compare how long three nodes and one Postfix take to accept a message of 4 KiB
when each fsync and fdatasync takes longer, as on a disk whose writes are durable
only once they are on it. One session, one message per connection, to the three
nodes in turn; in rounds: Postfix, the nodes, Postfix, the nodes, ...

Postfix gets a library preloaded, compiled by gcc on the spot, whose fsync and
fdatasync sleep first. The nodes are the build with the tag rig, which sleeps
before the syncs of bodies, of Raft's log, and of term, vote and floor. A side
whose replies to the final dot do not take at least that long is an error: the
delay did not reach it.

Needs root, gcc, and the packages postfix and rsyslog. The last line is

  slow_disk_p50=X.XX

the median over the rounds of: the median time of the reply to the final dot, of
Postfix, through that of the nodes. The line before has the same for the whole
message, from connect to that reply.`,
		Example: `  holdfast-bench slow-disk --bin bin/rig --rounds 5`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.rounds < 1 || f.duration < time.Second || f.delay <= 0 {
				return usage(cmd, "--rounds is 1 at the least, --duration a second, --delay more than nothing")
			}
			return a.slowDisk(cmd.Context(), f)
		},
	}
	sceneFlags(cmd, &f.scene)
	flags := cmd.Flags()
	flags.IntVar(&f.rounds, "rounds", 5, "how many `rounds`")
	flags.DurationVar(&f.duration, "duration", 5*time.Second, "how long one side of a round takes")
	flags.DurationVar(&f.delay, "delay", 5*time.Millisecond, "how much longer each sync takes")
	flags.StringVar(&f.json, "json", "", "write every result to this `file`")
	return cmd
}

// slowCell is the one load of "slow-disk".
var slowCell = cell{load.Size4K, 1}

func (a *app) slowDisk(ctx context.Context, f slowDiskFlags) (err error) {
	dir, err := os.MkdirTemp("", "holdfast-slow-rival-")
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
	environment, err := rival.SlowSync(ctx, dir, f.delay)
	if err != nil {
		return err
	}
	f.scene.environ = append(slices.Clone(f.scene.environ), "HOLDFAST_RIG_SYNC_DELAY="+f.delay.String())
	return a.compareSlow(ctx, f,
		func(ctx context.Context, o load.Options) (load.Result, error) {
			return a.againstPostfix(ctx, filepath.Join(dir, "postfix"), environment, o)
		},
		func(ctx context.Context, o load.Options) (load.Result, error) {
			return a.againstHoldfast(ctx, f.scene, o)
		})
}

// compareSlow plays all rounds, and prints what came of them.
func (a *app) compareSlow(ctx context.Context, f slowDiskFlags, postfix, holdfast side) error {
	delayed := func(r load.Result, err error) (load.Result, error) {
		r, err = played(r, err)
		if err == nil && r.Dot.P50 < f.delay {
			err = fmt.Errorf("half of the replies to final dots came within %v: syncs were not delayed by %v", r.Dot.P50, f.delay)
		}
		return r, err
	}
	var matches []match
	for round := 1; round <= f.rounds; round++ {
		m := match{Round: round, Cell: slowCell}
		o := load.Options{
			Sessions: slowCell.Sessions, Sizes: slowCell.Size, Rotate: true, Duration: f.duration,
			Recipient: "user@" + domains()[0], Sender: "sender@sender.example",
			Run: fmt.Sprintf("slow%d", round), Seed: uint64(round),
		}
		var err error
		if m.Postfix, err = delayed(postfix(ctx, o)); err != nil {
			return fmt.Errorf("round %d, Postfix: %w", round, err)
		}
		if m.Holdfast, err = delayed(holdfast(ctx, o)); err != nil {
			return fmt.Errorf("round %d, Holdfast: %w", round, err)
		}
		a.say("round %d of %d: Postfix %v", round, f.rounds, m.Postfix)
		a.say("round %d of %d: Holdfast %v", round, f.rounds, m.Holdfast)
		matches = append(matches, m)
		if err := writeResults(f.json, matches); err != nil {
			return err
		}
	}
	a.printSlow(f, matches)
	return failures(matches)
}

func (a *app) printSlow(f slowDiskFlags, matches []match) {
	row := func(what string, of func(load.Result) load.Quantiles) float64 {
		var postfix, holdfast, ratios []float64
		for _, m := range matches {
			p, h := of(m.Postfix).P50, of(m.Holdfast).P50
			postfix, holdfast = append(postfix, p.Seconds()*1e3), append(holdfast, h.Seconds()*1e3)
			ratios = append(ratios, float64(p)/float64(h))
		}
		fmt.Fprintf(a.out, "%s, p50: Postfix %.2f ms, Holdfast %.2f ms; ratio %.2f (%.2f-%.2f)\n",
			what, median(postfix), median(holdfast), median(ratios), slices.Min(ratios), slices.Max(ratios))
		return median(ratios)
	}
	fmt.Fprintf(a.out, "one session, 4 KiB, %v more for each sync, %d rounds\n", f.delay, len(matches))
	dot := row("reply to the final dot", func(r load.Result) load.Quantiles { return r.Dot })
	row("whole message", func(r load.Result) load.Quantiles { return r.Session })
	fmt.Fprintf(a.out, "slow_disk_p50=%.2f\n", dot)
}
