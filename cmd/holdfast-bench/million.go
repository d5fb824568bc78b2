package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
)

// millionFlags are the flags of "million".
type millionFlags struct {
	scene    sceneOptions
	messages int
	duration time.Duration
	timeMax  time.Duration
	json     string
}

func (a *app) millionCommand() *cobra.Command {
	f := millionFlags{scene: sceneOptions{name: "million"}}
	cmd := &cobra.Command{
		Use:   "million [--messages N]",
		Short: "Queue a million messages on three nodes, and measure what that does to them",
		Long: `Queue a million messages of 4 KiB on three nodes on this host, and measure: how fast
they accept mail before and after, with 100 sessions and one message per connection;
their memory; their disk; the longest time for which a snapshot held up the queue; and
how long it takes from the start of three killed nodes until one accepts a message.
Then every node must have all that was accepted.

It says first how much disk it needs, and refuses where there is less. The last line
is

  million messages=N rss_mib=N disk_bytes=N restart_s=X.X stall_ms=X.X rate_ratio=X.XX

where the memory is the peak of the largest node, the restart included, and the disk
is what each node's directory takes per message. stall_ms is -1 where no snapshot was
written.`,
		Example: `  holdfast-bench million --bin bin --messages 100000`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.messages < millionMin || f.duration < time.Second || f.timeMax < time.Minute {
				return usage(cmd, "--messages is %d at the least, --duration a second, --time-max a minute", millionMin)
			}
			return a.million(cmd.Context(), f)
		},
	}
	sceneFlags(cmd, &f.scene)
	flags := cmd.Flags()
	flags.IntVar(&f.messages, "messages", 1_000_000, "how many `messages` are queued")
	flags.DurationVar(&f.duration, "duration", 10*time.Second, "how long each measurement of the rate takes")
	flags.DurationVar(&f.timeMax, "time-max", time.Hour, "give up after this long")
	flags.StringVar(&f.json, "json", "", "write the figures to this `file`")
	return cmd
}

// A millionResult is what "million" found.
type millionResult struct {
	Messages      int           `json:"messages"`           // queued at the end
	PeakRSS       int64         `json:"peak_rss_bytes"`     // of the largest node
	FilledRSS     int64         `json:"filled_rss_bytes"`   // the same, before the restart
	DiskPerQueued int64         `json:"disk_bytes_per_msg"` // of the node with the most
	Restart       time.Duration `json:"restart_ns"`         // until a message is accepted
	AllReady      time.Duration `json:"all_ready_ns"`       // until every node is ready
	Snapshots     int           `json:"snapshots"`          // written by all nodes
	Stall         time.Duration `json:"stall_ns"`           // longest Apply beside one
	Empty         load.Result   `json:"empty"`
	Full          load.Result   `json:"full"`
	Fill          time.Duration `json:"fill_ns"`
}

func (r millionResult) ratio() float64 { return r.Full.PerSecond() / r.Empty.PerSecond() }

func (r millionResult) String() string {
	stall := -1.0
	if r.Snapshots > 0 {
		stall = r.Stall.Seconds() * 1e3
	}
	return fmt.Sprintf("million messages=%d rss_mib=%d disk_bytes=%d restart_s=%.1f stall_ms=%.1f rate_ratio=%.2f",
		r.Messages, r.PeakRSS>>20, r.DiskPerQueued, r.Restart.Seconds(), stall, r.ratio())
}

const (
	millionMin = 1000
	// millionNodeBytes is what a node needs beside its messages: files written
	// ahead, Raft's log, snapshots.
	millionNodeBytes = 1 << 30
	// millionMessageBytes is what a message of 4 KiB may take at a node.
	millionMessageBytes = 6 << 10
	// millionRates is how often the rate is measured with each queue.
	millionRates = 3
	// millionRateMessages is the most that a measurement adds, per second.
	millionRateMessages = 10_000
	millionSessions     = 100
	// fillSessions give many messages over each connection.
	fillSessions      = 60
	fillPerConnection = 500
	fillSteps         = 20
	// restartTime bounds the restart of all nodes.
	restartTime = 5 * time.Minute
)

// millionDisk is how much must be free: what will be written, and what must be
// left.
func millionDisk(f millionFlags) uint64 {
	messages := f.messages + 2*millionRates*int(f.duration.Seconds())*millionRateMessages
	return diskFreeMin + 3*(millionNodeBytes+uint64(messages)*millionMessageBytes)
}

func (a *app) million(ctx context.Context, f millionFlags) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.timeMax, fmt.Errorf("not within %v", f.timeMax))
	defer cancel()
	need := millionDisk(f)
	a.say("needs %d GiB of disk below %s, of which %d stay free", (need+1<<30-1)>>30, os.TempDir(), diskFreeMin>>30)
	if err := enoughSpace(os.TempDir(), need); err != nil {
		return err
	}
	var r millionResult
	err := a.withScene(ctx, f.scene, func(s *scene) (err error) {
		s.a = a // The scene's own steps are said again from here on.
		r, err = s.million(ctx, f)
		return err
	})
	if err != nil {
		return err
	}
	fmt.Fprintf(a.out, "accepted, empty queue: %v\naccepted, full queue:  %v\n", r.Empty, r.Full)
	fmt.Fprintf(a.out, "filled in %v; peak memory of the largest node %d MiB until then, %d MiB with the restart\n", r.Fill.Round(time.Second), r.FilledRSS>>20, r.PeakRSS>>20)
	fmt.Fprintf(a.out, "%d snapshots; a message accepted %v after the start, all nodes ready after %v\n", r.Snapshots, r.Restart.Round(time.Millisecond), r.AllReady.Round(time.Millisecond))
	fmt.Fprintln(a.out, r)
	return writeResults(f.json, r)
}

func (s *scene) million(ctx context.Context, f millionFlags) (r millionResult, err error) {
	if r.Empty, err = s.millionRate(ctx, "empty", f.duration, &r.Messages); err != nil {
		return r, err
	}
	begin := time.Now()
	if err := s.fill(ctx, f.messages, &r.Messages); err != nil {
		return r, err
	}
	r.Fill = time.Since(begin)
	if r.Full, err = s.millionRate(ctx, "full", f.duration, &r.Messages); err != nil {
		return r, err
	}
	r.FilledRSS = s.peakRSS()
	if r.DiskPerQueued, err = s.diskPer(r.Messages); err != nil {
		return r, err
	}
	if err := s.restart(ctx, &r); err != nil {
		return r, err
	}
	r.PeakRSS = s.peakRSS()
	for _, n := range s.fleet.Nodes {
		stalls, err := snapshotStalls(n.Log)
		if err != nil {
			return r, err
		}
		for _, stall := range stalls {
			r.Snapshots++
			r.Stall = max(r.Stall, stall)
		}
		status, err := s.fleet.Status(ctx, n)
		if err != nil {
			return r, err
		}
		if status.Queue.Queued != r.Messages {
			return r, fmt.Errorf("%s has %d messages queued, and %d were accepted", n.Name, status.Queue.Queued, r.Messages)
		}
	}
	return r, nil
}

// millionRate measures how many messages are accepted a second, and returns the
// measurement in the middle of several: a snapshot is made in some and not in others.
func (s *scene) millionRate(ctx context.Context, queue string, duration time.Duration, queued *int) (load.Result, error) {
	results := make([]load.Result, millionRates)
	for i := range results {
		if err := s.settle(ctx); err != nil {
			return load.Result{}, err
		}
		o := millionLoad(s, fmt.Sprintf("%s-%d", queue, i))
		o.Sessions, o.Duration, o.Seed = millionSessions, duration, uint64(1+i)
		result, err := s.load(ctx, o)
		if err != nil {
			return load.Result{}, err
		}
		s.a.say("%s queue: %v", queue, result)
		*queued += result.Accepted
		results[i] = result
	}
	slices.SortFunc(results, func(a, b load.Result) int { return cmp.Compare(a.PerSecond(), b.PerSecond()) })
	return results[len(results)/2], nil
}

// millionLoad is the load of a part, spread over all nodes.
func millionLoad(s *scene, run string) load.Options {
	return load.Options{
		Targets: s.fleet.Addresses(), Sessions: 1, Sizes: load.Size4K,
		Recipient: "user@" + domains()[0], Sender: "sender@sender.example", Run: "million-" + run, Seed: 1,
	}
}

// fill gives messages away until so many are queued, in steps.
func (s *scene) fill(ctx context.Context, want int, queued *int) error {
	for step := 0; *queued < want; step++ {
		o := millionLoad(s, fmt.Sprintf("fill-%d", step))
		o.Sessions, o.PerConnection, o.Seed = fillSessions, fillPerConnection, uint64(step+2)
		o.Count = min(max(want/fillSteps, millionMin), want-*queued)
		result, err := load.Run(ctx, o)
		*queued += result.Accepted
		if err == nil && ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		if err == nil && result.Failures() > 0 {
			err = fmt.Errorf("%v", result)
		}
		if err != nil {
			return fmt.Errorf("fill, at %d of %d messages: %w", *queued, want, err)
		}
		s.a.say("%d of %d messages queued, %.0f/s; peak memory of the largest node %d MiB", *queued, want, result.PerSecond(), s.peakRSS()>>20)
	}
	return s.fleet.Ready(ctx)
}

func (s *scene) peakRSS() (octets int64) {
	for _, n := range s.fleet.Nodes {
		octets = max(octets, n.PeakRSS())
	}
	return octets
}

// diskPer is what the directory of the node with the largest takes on disk, per
// message.
func (s *scene) diskPer(messages int) (octets int64, err error) {
	for _, n := range s.fleet.Nodes {
		used, err := diskUsed(filepath.Join(n.Dir, "data"))
		if err != nil {
			return 0, err
		}
		s.a.say("%s: %d MiB on disk", n.Name, used>>20)
		octets = max(octets, used/int64(messages))
	}
	return octets, nil
}

// diskUsed is what the file system has allocated for the files below a directory.
// Files come and go meanwhile.
func diskUsed(dir string) (octets int64, err error) {
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			octets += stat.Blocks * 512 // of 512 octets, whatever the file system's are
		}
		return nil
	})
	return octets, err
}

// restart kills all nodes at once, starts them, and waits until one accepts a
// message, then until all are ready.
func (s *scene) restart(ctx context.Context, r *millionResult) error {
	ctx, cancel := context.WithTimeoutCause(ctx, restartTime, fmt.Errorf("not within %v", restartTime))
	defer cancel()
	for _, n := range s.fleet.Nodes {
		if err := n.Kill(); err != nil {
			return err
		}
	}
	s.a.say("all nodes killed")
	begin := time.Now()
	if err := s.fleet.Start(); err != nil {
		return err
	}
	accepted := make(chan error, len(s.fleet.Nodes))
	trying, stop := context.WithCancel(ctx)
	defer stop()
	for _, n := range s.fleet.Nodes {
		go func() { accepted <- s.tryOne(trying, n) }()
	}
	for i := range s.fleet.Nodes {
		if err := <-accepted; err != nil {
			return errors.Join(fmt.Errorf("wait for a message to be accepted: %w", err), s.fleet.Fallen())
		}
		if i == 0 {
			r.Restart = time.Since(begin)
			s.a.say("a message is accepted %v after the start", r.Restart.Round(time.Millisecond))
		}
		r.Messages++
	}
	if err := s.fleet.Ready(ctx); err != nil {
		return err
	}
	r.AllReady = time.Since(begin)
	return nil
}

// tryOne gives a node one message, until it takes it.
func (s *scene) tryOne(ctx context.Context, n *fleet.Node) error {
	for try := uint64(0); ctx.Err() == nil; try++ {
		o := millionLoad(s, fmt.Sprintf("restart-%s-%d", n.Name, try))
		o.Targets, o.Count = []string{n.SMTP}, 1
		result, err := load.Run(ctx, o)
		if err != nil {
			return err
		}
		if result.Accepted == 1 {
			return nil
		}
	}
	return context.Cause(ctx)
}

// snapshotLine is what a node logs of each snapshot that it wrote.
var snapshotLine = regexp.MustCompile(`msg="snapshot written".* longest_apply=(\S+)`)

// snapshotStalls reads from a node's log how long the queue stood still beside
// each snapshot.
func snapshotStalls(file string) ([]time.Duration, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	defer f.Close()
	var stalls []time.Duration
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		found := snapshotLine.FindSubmatch(lines.Bytes())
		if found == nil {
			continue
		}
		stall, err := time.ParseDuration(string(found[1]))
		if err != nil {
			return nil, fmt.Errorf("read the log: %w", err)
		}
		stalls = append(stalls, stall)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	return stalls, nil
}
