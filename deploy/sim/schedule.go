package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// A fault breaks something in a world and says how to mend it. But for those
// that say so, it leaves a majority that could go on.
type fault struct {
	name  string
	begin func(ctx context.Context, w *World, victim string) (mend func() error, err error)
}

// faults are what a schedule draws from.
var faults = slices.Concat(clusterFaults, hostFaults, primaryFaults)

// clusterFaults are those of nodes and of the network.
var clusterFaults = []fault{
	{"kill", func(ctx context.Context, w *World, victim string) (func() error, error) {
		w.Kill(victim)
		return func() error { return w.Start(ctx, victim) }, nil
	}},
	{"power cut", func(ctx context.Context, w *World, victim string) (func() error, error) {
		w.PowerCut(victim)
		return func() error { return w.Start(ctx, victim) }, nil
	}},
	// Nobody is left; the victim is the first to come back.
	{"all crash, first back", func(ctx context.Context, w *World, victim string) (func() error, error) {
		order := append([]string{victim}, without(w.names, victim)...)
		for _, name := range order {
			if w.random.IntN(2) == 0 {
				w.Kill(name)
			} else {
				w.PowerCut(name)
			}
		}
		return func() error {
			for _, name := range order {
				if err := w.Start(ctx, name); err != nil {
					return err
				}
				sleep(ctx, time.Duration(w.random.IntN(2_000))*time.Millisecond)
			}
			return nil
		}, nil
	}},
	{"restart", func(ctx context.Context, w *World, victim string) (func() error, error) {
		_ = w.Stop(victim) // a stop that could not finish in time is a kind of fault too
		return func() error { return w.Start(ctx, victim) }, nil
	}},
	{"cut off", func(_ context.Context, w *World, victim string) (func() error, error) {
		for _, other := range without(w.names, victim) {
			w.network.Cut(victim, other)
		}
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	{"deaf", func(_ context.Context, w *World, victim string) (func() error, error) {
		for _, other := range without(w.names, victim) {
			w.network.CutOneWay(other, victim)
		}
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	{"no way to the primary", func(_ context.Context, w *World, victim string) (func() error, error) {
		w.network.Cut(victim, primaryName)
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	{"one link cut", func(_ context.Context, w *World, victim string) (func() error, error) {
		other := without(w.names, victim)[w.random.IntN(len(w.names)-1)]
		w.network.Cut(victim, other)
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	{"one link one way", func(_ context.Context, w *World, victim string) (func() error, error) {
		other := without(w.names, victim)[w.random.IntN(len(w.names)-1)]
		w.network.CutOneWay(victim, other)
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	// On the smaller side there are the primary and the sender; the sender's host is on
	// either.
	{"partition", func(_ context.Context, w *World, victim string) (func() error, error) {
		others := without(w.names, victim)
		w.random.Shuffle(len(others), func(i, j int) { others[i], others[j] = others[j], others[i] })
		few := (len(w.names) - 1) / 2
		smaller, larger := append([]string{victim, primaryName, senderName}, others[:few-1]...), others[few-1:]
		if w.home != nil && w.random.IntN(2) == 0 {
			smaller = append(smaller, homeName)
		} else if w.home != nil {
			larger = append(larger, homeName)
		}
		w.network.Partition(smaller, larger)
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	// Frozen is as near as one process comes to a host that is stopped and goes on:
	// what it sends and is sent is late.
	{"frozen", func(_ context.Context, w *World, victim string) (func() error, error) {
		w.network.Freeze(victim, time.Now().Add(time.Duration(1+w.random.IntN(int(frozenMax/time.Second)))*time.Second))
		return func() error { return nil }, nil
	}},
	{"sender cut off", func(_ context.Context, w *World, victim string) (func() error, error) {
		w.network.Cut(victim, senderName)
		return func() error { w.network.HealAll(); return nil }, nil
	}},
}

// hostFaults are those of disks, and of connections that break in the middle of
// something.
var hostFaults = []fault{
	{"connections break", func(_ context.Context, w *World, victim string) (func() error, error) {
		ends := append(without(w.names, victim), primaryName, senderName)
		if w.home != nil {
			ends = append(ends, homeName)
		}
		a, b := victim, ends[w.random.IntN(len(ends))]
		if w.random.IntN(2) == 0 {
			a, b = b, a
		}
		w.network.BreakAfter(a, b, 1+int(between(w.random, 1, 64<<10)))
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	// The node must end by itself.
	{"disk refuses", func(ctx context.Context, w *World, victim string) (func() error, error) {
		w.setAiling(victim, true)
		struck := make(chan struct{}, 1)
		// A segment that was to be written ahead has nobody's mail in it: the node may
		// go on without.
		spare := w.disks[victim].spool.Inject(clustertest.Fault{Op: clustertest.OpSync, Name: "*.free", Err: clustertest.ErrDisk, Forever: true})
		lift := w.disks[victim].spool.Inject(clustertest.Fault{Op: clustertest.OpSync, Skip: w.random.IntN(20), Err: clustertest.ErrDisk, Forever: true, Struck: struck})
		return func() error {
			var err error
			select {
			case <-struck:
				sleep(ctx, endTime)
				if p := w.node(victim); p != nil && p.node.Err() == nil {
					err = fmt.Errorf("%s goes on behind a sync that failed", victim)
				}
			default:
			}
			w.PowerCut(victim)
			w.setAiling(victim, false)
			spare()
			lift()
			return errors.Join(err, w.Start(ctx, victim))
		}, nil
	}},
	{"disk hangs", func(_ context.Context, w *World, victim string) (func() error, error) {
		delay := between(w.random, time.Second, time.Minute)
		lift := w.disks[victim].spool.Inject(clustertest.Fault{Op: clustertest.OpSync, Skip: w.random.IntN(20), Delay: delay})
		return func() error { lift(); return nil }, nil
	}},
	{"disk slow", func(_ context.Context, w *World, victim string) (func() error, error) {
		delay := between(w.random, 10*time.Millisecond, time.Second)
		lift := w.disks[victim].spool.Inject(clustertest.Fault{Op: clustertest.OpSync, Delay: delay, Forever: true})
		return func() error { lift(); return nil }, nil
	}},
	{"disk full", func(_ context.Context, w *World, victim string) (func() error, error) {
		free := &w.disks[victim].free
		before := free.Swap(1)
		return func() error { free.Store(before); return nil }, nil
	}},
}

// endTime is how long a node may take to end behind a sync that failed.
const endTime = 5 * time.Second

// frozenMax is how long a node is frozen at most.
const frozenMax = 45 * time.Second

// primaryFaults are those of a primary that is up.
var primaryFaults = []fault{
	{"primary misbehaves", func(_ context.Context, w *World, _ string) (func() error, error) {
		stages := sink.Stages()
		f := sink.Fault{Stage: stages[w.random.IntN(len(stages))], Rate: 0.3}
		actions := []sink.Action{sink.Drop, sink.Hang}
		// A primary that keeps what it refuses would be at fault itself for the
		// second copy.
		if f.Stage != sink.Body && f.Stage != sink.AfterDot {
			actions = append(actions, sink.Refuse, sink.Defer)
		}
		f.Action = actions[w.random.IntN(len(actions))]
		w.faults.Set(f)
		return func() error { w.faults.Set(w.usual.faults...); return nil }, nil
	}},
	{"primary thinks", func(_ context.Context, w *World, _ string) (func() error, error) {
		w.SetPace(time.Duration(1+w.random.IntN(90)) * time.Second)
		return func() error { w.SetPace(w.usual.pace); return nil }, nil
	}},
	// What the primary is told and says is late, and other things break meanwhile. It
	// may last longer than a lease.
	{"primary frozen", func(_ context.Context, w *World, _ string) (func() error, error) {
		w.network.Freeze(primaryName, time.Now().Add(between(w.random, time.Second, 4*time.Minute)))
		return func() error { return nil }, nil
	}},
	{"primary down", func(_ context.Context, w *World, _ string) (func() error, error) {
		if !w.PrimaryDown() {
			return func() error { return nil }, nil // it comes when its time is over
		}
		return w.PrimaryUp, nil
	}},
}

// homeFault is for worlds whose senders are told: their host is down, one node alone
// cannot reach it, or it takes reports and does not say so.
var homeFault = fault{"sender's host", func(_ context.Context, w *World, victim string) (func() error, error) {
	switch w.random.IntN(3) {
	case 0:
		w.home.down()
		return w.home.up, nil
	case 1:
		w.network.Cut(victim, homeName)
		return func() error { w.network.HealAll(); return nil }, nil
	}
	w.home.faults.Set(sink.Fault{Stage: sink.AfterDot, Action: sink.Drop, Rate: 0.5})
	return func() error { w.home.faults.Set(); return nil }, nil
}}

// A tempo says how long a fault lasts, and how long nothing breaks behind it.
type tempo struct {
	lasts, rests func(*rand.Rand) time.Duration
}

// hasty is for worlds of some minutes.
var hasty = tempo{
	lasts: func(r *rand.Rand) time.Duration { return time.Duration(500+r.IntN(12_000)) * time.Millisecond },
	rests: func(r *rand.Rand) time.Duration { return time.Duration(500+r.IntN(8_000)) * time.Millisecond },
}

// brisk is for worlds of half an hour: half of the faults last less than ten seconds,
// and some longer than a lease and than the patience of a commit.
var brisk = tempo{
	lasts: func(r *rand.Rand) time.Duration { return between(r, 500*time.Millisecond, 150*time.Second) },
	rests: func(r *rand.Rand) time.Duration { return between(r, time.Second, time.Minute) },
}

// between draws a duration whose order of magnitude is as likely as any other.
func between(r *rand.Rand, low, high time.Duration) time.Duration {
	return time.Duration(float64(low) * math.Pow(float64(high)/float64(low), r.Float64()))
}

// torment runs seeded faults one after the other until ctx ends, and leaves
// everything mended, but for a primary that may be frozen still. The leader is the
// victim more often than its share.
func (w *World) torment(ctx context.Context, drawn []fault, t tempo) (names []string, err error) {
	for ctx.Err() == nil {
		f := drawn[w.random.IntN(len(drawn))]
		victim := w.names[w.random.IntN(len(w.names))]
		if strikesLeader := w.random.IntN(2) == 0; strikesLeader {
			victim = cmp.Or(w.Leader(), victim)
		}
		names = append(names, f.name+" "+victim)
		began := time.Now()
		mend, err := f.begin(context.WithoutCancel(ctx), w, victim)
		if err != nil {
			return names, fmt.Errorf("%s %s: %w", f.name, victim, err)
		}
		mute := w.mute()
		sleep(ctx, t.lasts(w.random))
		if err := mend(); err != nil {
			return names, fmt.Errorf("mend %s of %s: %w", f.name, victim, err)
		}
		w.silent(mute, began)
		if err := w.check(); err != nil {
			return names, fmt.Errorf("behind %s of %s: %w", f.name, victim, err)
		}
		sleep(ctx, t.rests(w.random))
	}
	for _, name := range w.names {
		time.Sleep(time.Until(w.network.Frozen(name)))
	}
	return names, nil
}

// check looks for contradictions in the queue of each node that runs: a message with a
// lease that does not stand is one.
func (w *World) check() error {
	var errs []error
	for _, name := range w.names {
		if p := w.nodes[name]; p != nil {
			if err := p.node.Member().View().Check(); err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
			}
		}
	}
	return errors.Join(errs...)
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
