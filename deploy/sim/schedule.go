package sim

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// A fault breaks something in a world and says how to mend it. But for those
// that say so, it leaves a majority that could go on.
type fault struct {
	name  string
	begin func(ctx context.Context, w *World, victim string) (mend func() error, err error)
}

// faults are what a schedule draws from.
var faults = slices.Concat(clusterFaults, primaryFaults)

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
		order := append([]string{victim}, slices.DeleteFunc(slices.Clone(nodeNames), func(n string) bool { return n == victim })...)
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
		for _, other := range nodeNames {
			if other != victim {
				w.network.Cut(victim, other)
			}
		}
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	{"deaf", func(_ context.Context, w *World, victim string) (func() error, error) {
		for _, other := range nodeNames {
			if other != victim {
				w.network.CutOneWay(other, victim)
			}
		}
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	{"no way to the primary", func(_ context.Context, w *World, victim string) (func() error, error) {
		w.network.Cut(victim, primaryName)
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	{"one link cut", func(_ context.Context, w *World, victim string) (func() error, error) {
		other := nodeNames[(slices.Index(nodeNames, victim)+1)%len(nodeNames)]
		w.network.Cut(victim, other)
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	{"one link one way", func(_ context.Context, w *World, victim string) (func() error, error) {
		other := nodeNames[(slices.Index(nodeNames, victim)+1+w.random.IntN(2))%len(nodeNames)]
		w.network.CutOneWay(victim, other)
		return func() error { w.network.HealAll(); return nil }, nil
	}},
	{"sender cut off", func(_ context.Context, w *World, victim string) (func() error, error) {
		w.network.Cut(victim, senderName)
		return func() error { w.network.HealAll(); return nil }, nil
	}},
}

// primaryFaults are those of a primary that is up.
var primaryFaults = []fault{
	{"primary misbehaves", func(_ context.Context, w *World, _ string) (func() error, error) {
		stages := sink.Stages()
		f := sink.Fault{Stage: stages[w.random.IntN(len(stages))], Action: sink.Drop, Rate: 0.3}
		// A primary that keeps what it refuses would be at fault itself for the
		// second copy.
		if f.Stage != sink.Body && f.Stage != sink.AfterDot && w.random.IntN(2) == 0 {
			f.Action = sink.Refuse
		}
		w.faults.Set(f)
		return func() error { w.faults.Set(); return nil }, nil
	}},
	{"primary thinks", func(_ context.Context, w *World, _ string) (func() error, error) {
		w.SetPace(time.Duration(1+w.random.IntN(90)) * time.Second)
		return func() error { w.SetPace(0); return nil }, nil
	}},
	{"primary down", func(_ context.Context, w *World, _ string) (func() error, error) {
		w.PrimaryDown()
		return w.PrimaryUp, nil
	}},
}

// A tempo says how long a fault lasts, and how long nothing breaks behind it.
type tempo struct {
	lasts, rests func(*rand.Rand) time.Duration
}

// hasty is for worlds of some minutes.
var hasty = tempo{
	lasts: func(r *rand.Rand) time.Duration { return time.Duration(500+r.IntN(12_000)) * time.Millisecond },
	rests: func(r *rand.Rand) time.Duration { return time.Duration(500+r.IntN(8_000)) * time.Millisecond },
}

// Torment runs seeded faults one after the other until ctx ends, and leaves
// everything mended. The leader is the victim more often than its share.
func (w *World) Torment(ctx context.Context) (names []string, err error) {
	return w.torment(ctx, faults, hasty)
}

func (w *World) torment(ctx context.Context, drawn []fault, t tempo) (names []string, err error) {
	for ctx.Err() == nil {
		f := drawn[w.random.IntN(len(drawn))]
		victim := nodeNames[w.random.IntN(len(nodeNames))]
		if leader := w.Leader(); leader != "" && w.random.IntN(2) == 0 {
			victim = leader
		}
		names = append(names, f.name+" "+victim)
		mend, err := f.begin(context.WithoutCancel(ctx), w, victim)
		if err != nil {
			return names, fmt.Errorf("%s %s: %w", f.name, victim, err)
		}
		sleep(ctx, t.lasts(w.random))
		if err := mend(); err != nil {
			return names, fmt.Errorf("mend %s of %s: %w", f.name, victim, err)
		}
		sleep(ctx, t.rests(w.random))
	}
	return names, nil
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
