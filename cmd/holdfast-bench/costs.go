package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/load"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// costsFlags are the flags of "costs".
type costsFlags struct {
	scene    sceneOptions
	rig      string // directory of binaries
	duration time.Duration
	parts    []string
	json     string
}

// costParts are what can be measured by itself, in the order in which it is.
var costParts = []string{"log", "disk", "wire", "rss"}

func (a *app) costsCommand() *cobra.Command {
	f := costsFlags{scene: sceneOptions{name: "costs"}}
	cmd := &cobra.Command{
		Use:   "costs [--bin DIR] [--rig DIR]",
		Short: "Measure what a message costs: disk, wire and memory",
		Long: `Measure what accepting mail costs three nodes on this host.

log: the same load with Raft's log in segments, as the product has it, and in
raft-boltdb. This needs the build with the tag rig, which has a switch for it.

disk: octets that the block device below the three nodes together was given, per
octet of accepted body, with 100 sessions: into segments that were used before
(recycled) and into files that grow. For root, that device is a loop device with a
file system of its own; for others it is the host's, and counts what else is written.
Raft's log lies in segments that were written ahead both times: it uses them up too
slowly.

wire: octets on the connections between the nodes per octet of accepted body, with
all mail coming to the leader, and with all of it coming to another node.

rss: the peak resident memory of the largest node, under the mix with 100 sessions,
and with 100 messages of 25 MiB at a time. What a node has no memory for at present
it may refuse with 452, and nothing else.

The last line is

  disk_64k=X.XX disk_4k=X.XX wire=X.XX rss_mib=N

each the largest of its kind, but for the messages of 25 MiB, which have the line
before it.`,
		Example: `  holdfast-bench costs --bin bin
  holdfast-bench costs --bin bin --parts wire`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.duration < time.Second {
				return usage(cmd, "--duration is a second at the least")
			}
			for _, part := range f.parts {
				if err := oneOf(cmd, "parts", part, costParts...); err != nil {
					return err
				}
			}
			return a.costs(cmd.Context(), f)
		},
	}
	binFlag(cmd, &f.scene) // there is no --keep: files and logs go with the volume
	flags := cmd.Flags()
	flags.StringVar(&f.rig, "rig", "bin/rig", "the `directory` of holdfastd, built with the tag rig, and holdfast")
	flags.DurationVar(&f.duration, "duration", 5*time.Second, "how long one load takes")
	flags.StringSliceVar(&f.parts, "parts", costParts, "what to measure, separated by commas; the rest is 0 in the last line")
	flags.StringVar(&f.json, "json", "", "write every result to this `file`")
	return cmd
}

// A diskCost is what one load cost in octets written.
type diskCost struct {
	Size     load.Sizes  `json:"size"`
	Segments string      `json:"segments"` // recycled or growing
	Window   window      `json:"window"`
	Load     load.Result `json:"load"`
	// Ahead is what of Window.Device the nodes wrote ahead for bodies. They are to do
	// that when they have nothing else to do. Of the log's files it cannot be told:
	// those that it has done with come to its pool.
	Ahead int64 `json:"written_ahead_bytes"`
}

func (c diskCost) aheadPerOctet() float64 { return float64(c.Ahead) / float64(c.Window.Octets) }

// A wireCost is what one load cost in octets between the nodes.
type wireCost struct {
	Size load.Sizes  `json:"size"`
	At   string      `json:"accepting"` // leader or follower
	Load load.Result `json:"load"`
	Sent uint64      `json:"sent_bytes"`
}

func (c wireCost) perOctet() float64 { return float64(c.Sent) / float64(c.Load.Octets) }

// A memoryCost is the peak of the largest node under one load.
type memoryCost struct {
	Size    load.Sizes  `json:"size"`
	Load    load.Result `json:"load"`
	PeakRSS int64       `json:"peak_rss_bytes"`
}

// A logCost is what one load cost with Raft's log in one kind of store.
type logCost struct {
	Store  string      `json:"store"`
	Window window      `json:"window"`
	Load   load.Result `json:"load"`
}

// The costs of a run.
type costs struct {
	Log    []logCost    `json:"log"`
	Disk   []diskCost   `json:"disk"`
	Wire   []wireCost   `json:"wire"`
	Memory []memoryCost `json:"memory"`
}

const (
	costSessions = 100
	// costDiskFreeMin is what must be free: the 2.5 GiB of the messages of 25 MiB
	// lie on three nodes, and nothing else that runs at a time takes as much.
	costDiskFreeMin = 20 << 30
	volumeBytes     = 19 << 30
	// costBytesMax bounds one load.
	costBytesMax = 1 << 30
)

func (a *app) costs(ctx context.Context, f costsFlags) (err error) {
	a.say("needs %d GiB of disk below %s, and gives them back", costDiskFreeMin>>30, os.TempDir())
	if err := enoughSpace(os.TempDir(), costDiskFreeMin); err != nil {
		return err
	}
	v, err := a.openVolume(ctx, volumeBytes)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.close()) }()
	f.scene.under = v.place()
	var c costs
	measure := map[string]func(context.Context, costsFlags, *costs) error{"log": a.logCosts, "disk": a.diskCosts, "wire": a.wireCosts, "rss": a.memoryCosts}
	for _, part := range costParts {
		if !slices.Contains(f.parts, part) {
			continue
		}
		if err := measure[part](ctx, f, &c); err != nil {
			return err
		}
	}
	a.printCosts(c)
	return writeResults(f.json, c)
}

// withScene runs a part with three new nodes that hold nothing.
func (a *app) withScene(ctx context.Context, o sceneOptions, part func(*scene) error) error {
	quiet := *a
	quiet.quiet = true
	s, err := quiet.openScene(ctx, o)
	if err != nil {
		return err
	}
	if err = part(s); err == nil {
		// A node that is told to stop waits for what it has not committed, and for
		// that it needs the others.
		err = s.fleet.Ready(ctx)
	}
	return errors.Join(err, s.fleet.Fallen(), s.close())
}

// costLoad is the load of a part, spread over all nodes.
func costLoad(s *scene, size load.Sizes, run string) load.Options {
	return load.Options{
		Targets: s.fleet.Addresses(), Sessions: costSessions, Sizes: size, BytesMax: costBytesMax,
		Recipient: "user@" + domains()[0], Sender: "sender@sender.example", Run: run + "-" + string(size), Seed: 1,
	}
}

// load runs a load in which nothing may fail: what is refused costs, too, and no
// figure would mean anything. It returns when every node has what was accepted,
// not only a quorum.
func (s *scene) load(ctx context.Context, o load.Options) (load.Result, error) {
	r, err := load.Run(ctx, o)
	if err == nil && (r.Accepted == 0 || r.Failures() > 0) {
		err = fmt.Errorf("load %s: %v", o.Run, r)
	}
	if err != nil {
		return r, err
	}
	return r, s.fleet.Ready(ctx)
}

// logStores are the kinds of stores, with the environment that chooses them.
var logStores = []struct {
	name    string
	environ []string
}{{"segments", nil}, {"raft-boltdb", []string{"HOLDFAST_RIG_LOG=bolt"}}}

// logCosts measures small messages: there the log weighs most.
func (a *app) logCosts(ctx context.Context, f costsFlags, c *costs) error {
	for _, store := range logStores {
		so := f.scene
		so.bin, so.environ = f.rig, store.environ
		err := a.withScene(ctx, so, func(s *scene) error {
			if err := s.settle(ctx); err != nil {
				return err
			}
			cost := logCost{Store: store.name}
			var err error
			if cost.Window, cost.Load, err = s.measured(ctx, costLoad(s, load.Size4K, "log"), f.duration); err != nil {
				return err
			}
			a.say("log in %s: %.2f octets written per octet; %v", store.name, cost.Window.perOctet(), cost.Load)
			c.Log = append(c.Log, cost)
			return nil
		})
		if err != nil {
			return fmt.Errorf("log in %s: %w", store.name, err)
		}
	}
	return nil
}

// diskCosts measures both kinds of segments, for both sizes.
func (a *app) diskCosts(ctx context.Context, f costsFlags, c *costs) error {
	for _, size := range []load.Sizes{load.Size64K, load.Size4K} {
		err := a.withScene(ctx, f.scene, func(s *scene) error {
			recycled, err := s.recycledCost(ctx, size, f.duration)
			if err != nil {
				return err
			}
			a.sayDisk(recycled)
			growing, err := s.growingCost(ctx, size, f.duration)
			if err != nil {
				return err
			}
			a.sayDisk(growing)
			c.Disk = append(c.Disk, recycled, growing)
			return nil
		})
		if err != nil {
			return fmt.Errorf("disk, %s: %w", size, err)
		}
	}
	return nil
}

func (a *app) sayDisk(c diskCost) {
	a.say("%s, %s segments: %.2f octets written per octet, %.2f of them ahead, over %v; %v",
		c.Size, c.Segments, c.Window.perOctet(), c.aheadPerOctet(), c.Window.Elapsed.Round(time.Millisecond), c.Load)
}

// poolShare is how many per cent of the pool a load may fill: the segments are
// longer than the bodies in them.
const poolShare = 80

// recycledCost measures a load that goes into the pool's files, and no more.
func (s *scene) recycledCost(ctx context.Context, size load.Sizes, length time.Duration) (diskCost, error) {
	c := diskCost{Size: size, Segments: "recycled"}
	if err := s.recycle(ctx); err != nil {
		return c, err
	}
	if err := s.takeRecycled(ctx); err != nil {
		return c, err
	}
	o := costLoad(s, size, "recycled")
	least, _, _ := s.pools(poolOfBodies)
	if least < segmentBytes {
		return c, fmt.Errorf("the poorest node has %d octets of segments to be used again", least)
	}
	o.BytesMax = min(o.BytesMax, least*poolShare/100)
	var err error
	_, _, before := s.pools(poolOfBodies)
	c.Window, c.Load, err = s.measured(ctx, o, length)
	_, _, after := s.pools(poolOfBodies)
	c.Ahead = max(0, after-before)
	return c, err
}

// growingCost uses up what was written ahead, and the segments that are being
// filled, and measures a load that takes over without a pause: in a pause the
// nodes write ahead again.
func (s *scene) growingCost(ctx context.Context, size load.Sizes, length time.Duration) (c diskCost, err error) {
	c = diskCost{Size: size, Segments: "growing"}
	useUp := costLoad(s, load.Size64K, "use-up")
	useUp.Duration = usePoolUpTime
	first := s.pour(ctx, useUp)
	defer func() {
		_, ended := first.end()
		err = errors.Join(err, ended)
	}()
	empty := func() bool { _, most, _ := s.pools(poolOfBodies); return most < segmentBytes }
	if err := first.until(empty); err != nil {
		return c, fmt.Errorf("use up what was written ahead: %w", err)
	}
	filled := first.taken.Load() + 2*segmentBytes
	if err := first.until(func() bool { return first.taken.Load() >= filled }); err != nil {
		return c, fmt.Errorf("fill the last segments that were written ahead: %w", err)
	}
	o := costLoad(s, size, "growing")
	o.Duration = 2*windowLead + length + windowOverrun
	second := s.pour(ctx, o)
	begin := time.Now()
	if err := second.until(func() bool { return time.Since(begin) >= windowLead }); err != nil {
		return c, err
	}
	if _, err := first.end(); err != nil {
		return c, err
	}
	handedOver := time.Now()
	if err := second.until(func() bool { return time.Since(handedOver) >= windowLead }); err != nil {
		return c, err
	}
	_, _, before := s.pools(poolOfBodies)
	c.Window, err = s.window(second, length, o.BytesMax-o.BytesMax/windowMargin)
	_, _, after := s.pools(poolOfBodies)
	c.Ahead = max(0, after-before)
	var ended error
	c.Load, ended = second.end()
	if err = errors.Join(err, ended); err == nil && !empty() {
		err = errors.New("a node has written a whole segment ahead meanwhile")
	}
	return c, err
}

// usePoolUpTime bounds how long that may take.
const usePoolUpTime = time.Minute

const (
	// fillBytes is more than four segments of 64 MiB, the spool's pool.
	fillBytes = 400 << 20
	// drainTime bounds the drain of those.
	drainTime = 3 * time.Minute
)

// recycle fills segments, drains them, and waits until the pools stay as they
// are.
func (s *scene) recycle(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, drainTime, fmt.Errorf("not within %v", drainTime))
	defer cancel()
	o := costLoad(s, load.Size64K, "fill")
	o.Count, o.BytesMax = fillBytes/(64<<10), fillBytes
	if _, err := s.load(ctx, o); err != nil {
		return err
	}
	if err := s.drainAway(ctx); err != nil {
		return err
	}
	return s.settle(ctx)
}

// takeRecycled has every node write into a file of its pools, of the bodies and of
// Raft's log. What it was filling when those were written ahead are files that grew,
// and would take in all of a load of small messages; but a start never goes on in a
// file of an earlier process.
func (s *scene) takeRecycled(ctx context.Context) error {
	for _, n := range s.fleet.Nodes {
		if err := errors.Join(n.Stop(), n.Start()); err != nil {
			return err
		}
		if err := s.fleet.Ready(ctx); err != nil {
			return err
		}
	}
	// The first message takes the file, and the pool has another one written.
	o := costLoad(s, load.Size4K, "begin")
	o.Count = costSessions
	if _, err := s.load(ctx, o); err != nil {
		return err
	}
	return s.settle(ctx)
}

// drainAway delivers all that is queued to a primary that forgets it, and takes
// the primary down again.
func (s *scene) drainAway(ctx context.Context) error {
	forget := func(ledger.Arrival) error { return nil }
	if err := s.servePrimary(sink.Options{Hostname: primaryName, Arrival: forget, Logger: s.o.logger}); err != nil {
		return err
	}
	if _, err := s.fleet.Holdfast(ctx, s.fleet.Nodes[0], "domain", "flush", domains()[0]); err != nil {
		return err
	}
	err := s.fleet.Until(ctx, "the queue to drain", func(ctx context.Context) error {
		for _, n := range s.fleet.Nodes {
			status, err := s.fleet.Status(ctx, n)
			if err != nil {
				return err
			}
			if !status.Queue.Idle() || status.Queue.Held > 0 {
				return fmt.Errorf("%s: %v", n.Name, status.Queue)
			}
		}
		return nil
	})
	s.primaryDown()
	return err
}

// wireCosts measures with all mail at the leader, and with all of it elsewhere.
func (a *app) wireCosts(ctx context.Context, f costsFlags, c *costs) error {
	return a.withScene(ctx, f.scene, func(s *scene) error {
		leader, _, err := s.fleet.Leader(ctx)
		if err != nil {
			return err
		}
		follower := s.fleet.Nodes[0]
		if follower == leader {
			follower = s.fleet.Nodes[1]
		}
		for _, size := range []load.Sizes{load.Size64K, load.Mix, load.Size4K} {
			for _, at := range []struct {
				name string
				node *fleet.Node
			}{{"leader", leader}, {"follower", follower}} {
				o := costLoad(s, size, "wire-"+at.name)
				o.Targets, o.Duration = []string{at.node.SMTP}, f.duration
				cost, err := a.wireCost(ctx, s, o, at.name)
				if err != nil {
					return fmt.Errorf("wire, %s at the %s: %w", size, at.name, err)
				}
				c.Wire = append(c.Wire, cost)
			}
		}
		return nil
	})
}

func (a *app) wireCost(ctx context.Context, s *scene, o load.Options, at string) (wireCost, error) {
	c := wireCost{Size: o.Sizes, At: at}
	meter, err := s.fleet.NewWireMeter(ctx)
	if err != nil {
		return c, err
	}
	if c.Load, err = s.load(ctx, o); err != nil {
		return c, err
	}
	if c.Sent, err = meter.Read(ctx); err != nil {
		return c, err
	}
	a.say("%s, all at the %s: %.2f octets on the wire per octet; %v", o.Sizes, at, c.perOctet(), c.Load)
	return c, nil
}

// memoryCosts measures new nodes for each load.
func (a *app) memoryCosts(ctx context.Context, f costsFlags, c *costs) error {
	for _, size := range []load.Sizes{load.Mix, load.Size25M} {
		err := a.withScene(ctx, f.scene, func(s *scene) error {
			o := costLoad(s, size, "memory")
			if size == load.Size25M {
				// Each session has one, and all are under way at a time.
				o.Count, o.BytesMax = costSessions, 0
			} else {
				o.Duration, o.BytesMax = 2*f.duration, 2*costBytesMax
			}
			r, err := load.Run(ctx, o)
			if err == nil {
				err = onlyDeferred(r)
			}
			if err != nil {
				return err
			}
			cost := memoryCost{Size: size, Load: r}
			for _, n := range s.fleet.Nodes {
				cost.PeakRSS = max(cost.PeakRSS, n.PeakRSS())
			}
			a.say("%s: peak memory of a node %d MiB; %v", size, cost.PeakRSS>>20, r)
			c.Memory = append(c.Memory, cost)
			return nil
		})
		if err != nil {
			return fmt.Errorf("memory, %s: %w", size, err)
		}
	}
	return nil
}

// replyNoRoom is what a server says that has no memory for a message at present.
const replyNoRoom = 452

// onlyDeferred returns an error where anything was refused but for want of memory,
// or nothing accepted.
func onlyDeferred(r load.Result) error {
	if r.Accepted == 0 || r.Failures() > r.Failed[replyNoRoom] {
		return fmt.Errorf("load: %v", r)
	}
	return nil
}

func (a *app) printCosts(c costs) {
	for _, l := range c.Log {
		fmt.Fprintf(a.out, "log  4k   in %-11s: %.2f octets written per octet of body; %.1f messages/s, %.2f times those with segments\n",
			l.Store, l.Window.perOctet(), l.Load.PerSecond(), l.Load.PerSecond()/c.Log[0].Load.PerSecond())
	}
	worst := make(map[load.Sizes]float64)
	wire := 0.0
	for _, d := range c.Disk {
		worst[d.Size] = max(worst[d.Size], d.Window.perOctet())
		fmt.Fprintf(a.out, "disk %-4s %-8s segments: %.2f octets written per octet of body, %.2f of them ahead; %.1f messages/s\n",
			d.Size, d.Segments, d.Window.perOctet(), d.aheadPerOctet(), d.Load.PerSecond())
	}
	for _, w := range c.Wire {
		wire = max(wire, w.perOctet())
		fmt.Fprintf(a.out, "wire %-4s all at the %-8s: %.2f octets between the nodes per octet of body; %d messages\n",
			w.Size, w.At, w.perOctet(), w.Load.Accepted)
	}
	peaks := make(map[load.Sizes]int64)
	for _, m := range c.Memory {
		peaks[m.Size] = m.PeakRSS >> 20
		fmt.Fprintf(a.out, "rss  %-4s %d MiB at the largest node; %d messages accepted, %d refused with %d\n",
			m.Size, m.PeakRSS>>20, m.Load.Accepted, m.Load.Failed[replyNoRoom], replyNoRoom)
	}
	fmt.Fprintf(a.out, "rss_25m=%d\n", peaks[load.Size25M])
	fmt.Fprintf(a.out, "disk_64k=%.2f disk_4k=%.2f wire=%.2f rss_mib=%d\n", worst[load.Size64K], worst[load.Size4K], wire, peaks[load.Mix])
}
