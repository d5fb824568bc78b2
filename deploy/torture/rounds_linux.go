package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/torture/schedule"
)

// hydrateTime is how long a node that lost its disk may take to have every body and its
// vote again. One that lacks what it had asks the others for 30 s, since the last thing
// that they gave it, before it refuses its disk.
const hydrateTime = 3 * time.Minute

// A round is the faults of one round of a schedule that were begun: together they
// last, and are mended, and behind that no node may stay away.
type round []act

// String names the faults.
func (r round) String() string {
	if len(r) == 0 {
		return "no fault"
	}
	var names []string
	for _, a := range r {
		names = append(names, fmt.Sprintf("%q", a.fault))
	}
	return strings.Join(names, " and ")
}

// undo is the first mend of each, the last first.
func (r round) undo() error {
	var errs []error
	for _, a := range slices.Backward(r) {
		if a.mend != nil {
			errs = append(errs, a.mend())
		}
	}
	return errors.Join(errs...)
}

// torment does what the plan says, as long as there is time.
func (r *run) torment(ctx context.Context) error {
	end := time.Now().Add(r.o.length)
	for _, next := range r.plan.Rounds {
		if ctx.Err() != nil {
			break
		}
		left := time.Until(end)
		if left < next.Lasts || left <= 0 {
			continue // a shorter one may fit
		}
		if len(next.Faults) == 0 {
			r.diary.say("%v", next)
		} else if err := r.play(ctx, next); err != nil {
			return err
		}
		wait(ctx, min(next.Rests, time.Until(end)))
	}
	return ctx.Err()
}

// play has the faults of a round begin, last, and mended.
func (r *run) play(ctx context.Context, plan schedule.Round) error {
	// Who ended by itself since the last round is started again.
	if err := r.restart(nil); err != nil {
		return err
	}
	var begun round
	for _, f := range plan.Faults {
		if r.nem.lacking(f.Kind) != "" || r.cast.peer.cannot(f.Kind) != "" {
			continue
		}
		if f.Kind.Alone() {
			// Another disk may be lost only when the last one was replaced.
			if err := r.cast.await(ctx, hydrateTime, r.cast.hydrated); err != nil {
				r.diary.breach("L8", "copies of everything on all nodes: %v", err)
				continue
			}
		}
		over := r.diary.fault(string(f.Kind))
		a, err := r.nem.begin(ctx, f)
		if err != nil {
			return errors.Join(err, begun.undo())
		}
		a.over = over
		r.diary.say("%v for %v", a.fault, plan.Lasts)
		begun = append(begun, a)
	}
	wait(ctx, plan.Lasts)
	return r.mend(ctx, begun)
}

// mend undoes a round.
func (r *run) mend(ctx context.Context, begun round) error {
	evidence := make([]string, len(begun))
	for i, a := range begun {
		evidence[i] = a.evidence()
	}
	broken := begun.undo()
	for i, a := range begun {
		if evidence[i] == "" {
			evidence[i] = a.evidence()
		}
		r.nem.witness(a.fault, evidence[i])
	}
	if broken != nil {
		return fmt.Errorf("mend: %w", broken)
	}
	if err := r.restart(begun); err != nil {
		return err
	}
	ready := false
	for _, a := range begun {
		r.diary.hear(a.silent...)
	}
	for _, a := range begun {
		if a.refuses || len(a.wiped) > 0 {
			r.comeBack(ctx, a)
		}
		r.cast.diary.heal(a.unhealthy...)
		a.over()
		// Sometimes the next fault strikes before the nodes are ready again.
		ready = ready || a.fault.Kind.Alone() || a.fault.Amount%3 != 0
	}
	if ready {
		r.settle(ctx)
	}
	return ctx.Err()
}

// restart starts the nodes that do not run. By itself a node ends only where the disk
// that an act of the round broke is its own.
func (r *run) restart(begun round) error {
	for _, a := range begun {
		r.ends.expect(a)
	}
	for i, n := range r.cast.fleet.Nodes {
		err := fell(n)
		expected := r.ends.expected(i, err)
		if err != nil && !expected {
			r.diary.breach("L8", "%s, in or after %v: %v", n.Name, begun, err)
		}
		if err != nil && expected {
			r.diary.say("%s ended by itself, as it should", n.Name)
			r.diary.fail(fellAt(err), i)
			defer r.diary.heal(i)
		}
		if n.Running() {
			continue
		}
		if err := n.Start(); err != nil {
			return err
		}
	}
	return nil
}

// comeBack brings a node back whose disk was damaged or lost. A node that refuses
// its data directory gets an empty one.
func (r *run) comeBack(ctx context.Context, a act) {
	i := a.fault.Victim
	n := r.cast.fleet.Nodes[i]
	empty := slices.Contains(a.wiped, i)
	begin := time.Now()
	err := r.cast.await(ctx, hydrateTime, func(ctx context.Context) error {
		if !n.Running() {
			err := fell(n)
			if a.refuses && !empty && (errors.Is(err, errRefuses) || errors.Is(err, errLacks)) {
				r.diary.say("%s refuses its data directory, and gets an empty one", n.Name)
				empty = true
				return errors.Join(r.nem.wipe(i), n.Start(), errors.New("just started"))
			}
			if err != nil {
				r.diary.breach("L8", "%s, after %q: %v", n.Name, a.fault, err)
			}
			return errors.Join(errors.New("it does not run"), n.Start())
		}
		err := r.cast.hydrated(ctx)
		if err == nil || !empty {
			return err
		}
		at := r.cast.leader(ctx)
		if at < 0 || at == i {
			return errors.Join(err, errors.New("nobody else leads"))
		}
		// Again and again: it may have been too early.
		_, adding := r.cast.fleet.Holdfast(ctx, r.cast.fleet.Nodes[at], "members", "add", n.Name)
		return errors.Join(err, adding)
	})
	if err != nil && ctx.Err() == nil {
		r.diary.breach("L8", "%s after %q: %v", n.Name, a.fault, err)
		return
	}
	if a.mustRefuse != nil && a.mustRefuse() && !empty {
		r.diary.breach("L8", "%s took a data directory of long ago for its own", n.Name)
	}
	r.diary.say("%s is back and lacks nothing, after %.1f s (empty: %v)", n.Name, time.Since(begin).Seconds(), empty)
}
