package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
)

// flapFlags are the flags of "flap".
type flapFlags struct {
	scene    sceneOptions
	messages int
	up, down time.Duration
	limit    time.Duration
	json     string
}

// flapsMax is after how many returns the primary stays up: whatever is in doubt then
// waits until it may be tried again.
const flapsMax = 20

func (a *app) flapCommand() *cobra.Command {
	f := flapFlags{scene: sceneOptions{name: "flap"}}
	cmd := &cobra.Command{
		Use:   "flap [--messages N] [--up TIME] [--down TIME]",
		Short: "Deliver a long queue of three nodes to a primary that comes and goes",
		Long: `Deliver a long queue of three nodes to a primary that comes and goes, all on this
host. It is up for a while, then takes connections and closes them at once, the ones
in use too, in whatever state they are; and again. After 20 returns it stays up.

Counted are the connections at a time, those that were open when the first message
of a return arrived (a herd would be all of them), and the connections a second that
it got while it was down. More than the ceiling of 20 at a time is an error, as is a
message that is lost or altered.

A message whose dot was out when the primary went waits ten minutes, since the node
that sent it may still hear of it: a run takes about a quarter of an hour. The last
line is

  flap messages=N lost=0 altered=0 duplicates=N most=N first_most=N returns=N down_per_s=X.X`,
		Example: `  holdfast-bench flap --bin bin --messages 100000`,
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.messages < 1 || f.messages > drainMessagesMax || f.up <= 0 || f.down <= 0 || f.limit < time.Minute {
				return usage(cmd, "--messages, --up and --down are more than nothing, --limit a minute at the least")
			}
			return a.flap(cmd.Context(), f)
		},
	}
	binFlag(cmd, &f.scene)
	flags := cmd.Flags()
	flags.IntVar(&f.messages, "messages", 100_000, "how many `messages` of 4 KB")
	flags.DurationVar(&f.up, "up", 3*time.Second, "how long the primary is up")
	flags.DurationVar(&f.down, "down", 20*time.Second, "and down")
	flags.DurationVar(&f.limit, "limit", 40*time.Minute, "give up after this time")
	flags.StringVar(&f.json, "json", "", "write the result to this `file`")
	return cmd
}

// A flapResult is what a primary saw that came and went.
type flapResult struct {
	Messages int `json:"messages"`
	// Most is the greatest number of connections at a time, FirstMost the same until
	// the first message of a return had arrived.
	Most      int64 `json:"connections_most"`
	FirstMost int64 `json:"connections_first_most"`
	Returns   int   `json:"returns"`
	// Down is how many connections came while it was down, and DownFor how long that
	// was in all.
	Down    int64         `json:"down_connections"`
	DownFor time.Duration `json:"down_ns"`
	Ledger  ledger.Report `json:"ledger"`
}

func (r flapResult) String() string {
	return fmt.Sprintf("flap messages=%d lost=%d altered=%d duplicates=%d most=%d first_most=%d returns=%d down_per_s=%.1f",
		r.Messages, r.Ledger.Lost, r.Ledger.Altered, r.Ledger.Duplicates, r.Most, r.FirstMost, r.Returns,
		float64(r.Down)/max(r.DownFor.Seconds(), 1e-3))
}

func (r flapResult) fault() (err error) {
	if !r.Ledger.OK() || r.Ledger.Delivered != r.Messages {
		err = fmt.Errorf("%w: %v, %q", errFaults, r.Ledger, r.Ledger.Cases)
	}
	if r.Most > drainCeiling {
		err = errors.Join(err, fmt.Errorf("%d connections at a time, and %d are the ceiling", r.Most, drainCeiling))
	}
	return err
}

func (a *app) flap(ctx context.Context, f flapFlags) (err error) {
	c := drainCell{Size: letter.Size4K, Messages: f.messages}
	need := drainDisk([]drainCell{c})
	a.say("needs %d GiB of disk below %s, of which %d stay free", (need+1<<30-1)>>30, os.TempDir(), diskFreeMin>>30)
	if err := enoughSpace(os.TempDir(), need); err != nil {
		return err
	}
	outer := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, f.limit, fmt.Errorf("not within %v", f.limit))
	defer cancel()
	h, err := a.openNodes(ctx, f.scene)
	if err != nil {
		return err
	}
	defer func() {
		failed := err != nil && outer.Err() == nil
		err = errors.Join(err, h.close(context.WithoutCancel(ctx), failed))
	}()
	d := drainage{h: h, cell: c, seed: 1, book: ledger.New(), stall: drainStall}
	if err := d.fill(ctx); err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	a.say("%d messages taken in %v, all deferred %v later", f.messages, d.r.Fill.Round(time.Millisecond), d.r.Defer.Round(time.Millisecond))
	r, err := a.comeAndGo(ctx, f, &d)
	if err != nil {
		return err
	}
	if err := writeResults(f.json, r); err != nil {
		return err
	}
	fmt.Fprintln(a.out, r)
	return r.fault()
}

// comeAndGo has the primary come and go until all has arrived.
func (a *app) comeAndGo(ctx context.Context, f flapFlags, d *drainage) (flapResult, error) {
	r := flapResult{Messages: f.messages}
	t := newTally(d.book, f.messages)
	for done := false; !done; {
		var p *drainPrimary
		ready := make(chan struct{})
		var first sync.Once
		var most int64
		p, err := openPrimary(d.h.nextHop(), 0, func(arrived ledger.Arrival) error {
			<-ready
			first.Do(func() { most = p.server.Stats().ConnectionsMost })
			return t.arrival(arrived)
		})
		if err != nil {
			return r, err
		}
		close(ready)
		var over <-chan time.Time
		if r.Returns++; r.Returns < flapsMax {
			over = time.After(f.up)
		}
		begin := time.Now()
		select {
		case <-t.all:
			done = true
		case <-over:
		case <-ctx.Done():
			p.close()
			return r, fmt.Errorf("%d of %d messages have arrived: %w", t.arrived(), f.messages, context.Cause(ctx))
		}
		if done { // copies that are under way are to be seen
			if err := d.emptied(ctx); err != nil {
				p.close()
				return r, err
			}
		}
		p.close()
		stats := p.server.Stats()
		r.Most, r.FirstMost = max(r.Most, stats.ConnectionsMost), max(r.FirstMost, most)
		a.say("up %d for %v: %d connections, %d at a time, %d when the first message arrived; %d of %d messages have arrived",
			r.Returns, time.Since(begin).Round(time.Millisecond), stats.Connections, stats.ConnectionsMost, most, t.arrived(), f.messages)
		if !done {
			refused, err := slamDoor(ctx, d.h.nextHop(), f.down)
			if err != nil {
				return r, err
			}
			r.Down, r.DownFor = r.Down+refused, r.DownFor+f.down
			a.say("down for %v: %d connections", f.down, refused)
		}
	}
	r.Ledger = d.book.Check()
	return r, nil
}

// slamDoor takes connections at an address and closes each at once, and counts them.
func slamDoor(ctx context.Context, address string, how time.Duration) (int64, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return 0, fmt.Errorf("be down: %w", err)
	}
	var came atomic.Int64
	var served sync.WaitGroup
	served.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			came.Add(1)
			_ = c.Close()
		}
	})
	defer served.Wait()
	defer func() { _ = l.Close() }()
	select {
	case <-time.After(how):
		return came.Load(), nil
	case <-ctx.Done():
		return came.Load(), context.Cause(ctx)
	}
}
