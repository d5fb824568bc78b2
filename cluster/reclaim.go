package cluster

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The limits of a round. What one costs does not depend on how long the queue is.
const (
	// reclaimEvery is how often finished bodies are looked for.
	reclaimEvery = 5 * time.Second
	// reclaimBatchMax bounds the bodies freed in one round. Where there are more,
	// the next round follows at once.
	reclaimBatchMax = 10_000
	// reclaimWalkMax is how many held bodies a round looks at, to find those that
	// nobody said are finished, if the round before found one. A million take five
	// minutes.
	reclaimWalkMax = 20_000
	// reclaimStrollMax is the same if the round before found none. A million take
	// half an hour, and little of the processor.
	reclaimStrollMax = 2500
	// reclaimRest is how long no walk begins after one that found nothing: where
	// few bodies are held, a walk ends in one round.
	reclaimRest = 5 * time.Minute
	// finishedMax bounds the ids of finished messages that wait for a round. What
	// goes beyond it is found by the walk.
	finishedMax = 200_000
)

// A finishedQueue is the ids of messages that nobody needs the body of any more.
// It is safe for concurrent use.
type finishedQueue struct {
	mu  sync.Mutex
	ids []mail.QueueID
}

func (q *finishedQueue) add(id mail.QueueID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.ids) < finishedMax {
		q.ids = append(q.ids, id)
	}
}

// take returns up to so many ids, the oldest first.
func (q *finishedQueue) take(limit int) []mail.QueueID {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(limit, len(q.ids))
	taken := slices.Clone(q.ids[:n])
	q.ids = q.ids[:copy(q.ids, q.ids[n:])]
	return taken
}

// heldBodies is the spool as a reclaimer sees it.
type heldBodies interface {
	Walk() iter.Seq[spool.Held]
	Doom(ids []mail.QueueID) []mail.BodyRef
	Pinned(ids []mail.QueueID) []mail.QueueID
	Spare([]mail.BodyRef)
	Delete([]mail.BodyRef) error
}

// appendRule is consensus as a reclaimer sees it.
type appendRule interface {
	BodiesNamedAbove(index uint64) []mail.BodyRef
	Floor() uint64
	RaiseFloor(index uint64) error
}

// A reclaimer frees the bodies of messages that have finished, as the queue says
// so, and those of the rest by a slow walk over all bodies: what no entry has
// named for an orphan's age, what came after its message had finished, and what
// finished before the snapshot from which this process started. It is used by
// one goroutine.
type reclaimer struct {
	bodies    heldBodies
	node      appendRule
	finished  *finishedQueue
	view      func() *fsm.State
	now       func() time.Time
	orphanAge time.Duration
	controls  controls.Set
	failpoint controls.Failpoint

	// owed have finished and could not be freed yet: they are pinned, or named by
	// an entry that is not applied.
	owed []mail.QueueID
	// found says that the walk found something in the last round: there will be more.
	found bool
	// fruitless says that the walk under way, or the last one, has found nothing so
	// far; walked is when a walk last came to its end.
	fruitless bool
	walked    time.Time
	// next goes on with the walk, stop ends it; nil between two walks.
	next func() (spool.Held, bool)
	stop func()
}

// reclaimLoop frees bodies until ctx ends.
func (m *Member) reclaimLoop(ctx context.Context) {
	r := &reclaimer{
		bodies: m.spool, node: m.node, finished: &m.replica.finished, view: m.View, now: m.now, orphanAge: m.orphanAge, controls: m.controls, failpoint: m.failpoint,
	}
	defer r.close()
	tick := time.NewTicker(reclaimEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for more := true; more && ctx.Err() == nil; {
			n, err := r.round()
			more = n >= reclaimBatchMax && err == nil
			if err != nil && !errors.Is(err, consensus.ErrNotCommitted) {
				m.log.Error("bodies not freed", "cause", err)
			} else if n > 0 {
				m.log.Debug("bodies freed", "count", n)
			}
		}
	}
}

func (r *reclaimer) close() {
	if r.stop != nil {
		r.stop()
		r.next, r.stop = nil, nil
	}
}

// round deletes bodies that nobody needs, and returns how many. The order is the
// append rule's (docs/architecture.md): look at the state, drop what the log
// above it names, doom what nobody has pinned, look at the log once more, make
// the floor cover the state, delete. The floor comes before the deletion because,
// after a restart, it is what allows a peer that lags to append the entry without
// its body.
func (r *reclaimer) round() (int, error) {
	told := append(r.owed, r.finished.take(max(0, reclaimBatchMax-len(r.owed)))...)
	r.owed = nil
	view := r.view() // behind the ids, so that it knows of them
	at := view.Applied()
	if at == 0 {
		return 0, nil
	}
	candidates := make(map[mail.QueueID]bool, len(told))
	for _, id := range told {
		if unneeded(view, id, false) {
			candidates[id] = true
		}
	}
	for _, id := range r.walk(view, reclaimBatchMax-len(candidates)) {
		candidates[id] = true
	}
	named := r.namedAbove(at)
	var ids []mail.QueueID
	for id := range candidates {
		if named[id] {
			r.owed = append(r.owed, id)
		} else {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return 0, r.keepFloorClose(at)
	}
	doomed := r.bodies.Doom(ids)
	// An entry appended between the first look and the doom may name one of
	// them; from here on a doomed body cannot be pinned, so none can be appended.
	named = r.namedAbove(at)
	var spared, dying []mail.BodyRef
	for _, ref := range doomed {
		if named[ref.ID] {
			spared = append(spared, ref)
		} else {
			dying = append(dying, ref)
		}
	}
	r.spare(spared)
	r.owed = append(r.owed, r.bodies.Pinned(ids)...)
	if len(dying) == 0 {
		return 0, nil
	}
	if err := r.raiseFloor(at); err != nil {
		r.spare(dying)
		return 0, err
	}
	if err := r.bodies.Delete(dying); err != nil {
		return 0, fmt.Errorf("delete %d bodies: %w", len(dying), err)
	}
	r.failpoint.At("reclaim: bodies deleted")
	return len(dying), nil
}

// spare keeps bodies for now.
func (r *reclaimer) spare(refs []mail.BodyRef) {
	r.bodies.Spare(refs)
	for _, ref := range refs {
		r.owed = append(r.owed, ref.ID)
	}
}

// walk goes on with the walk over all bodies, and returns those that nobody needs
// by this view, limit at the most.
func (r *reclaimer) walk(view *fsm.State, limit int) (ids []mail.QueueID) {
	now, looks := r.now(), reclaimStrollMax
	if r.next == nil {
		// A clock that was set back ends the rest.
		if rested := now.Sub(r.walked); r.fruitless && rested >= 0 && rested < reclaimRest {
			return nil
		}
		r.next, r.stop = iter.Pull(r.bodies.Walk())
		r.fruitless = true
	}
	if r.found {
		looks = reclaimWalkMax
	}
	for range looks {
		if len(ids) >= limit {
			break
		}
		b, ok := r.next()
		if !ok {
			r.close()
			r.walked = now
			break
		}
		if unneeded(view, b.Ref.ID, now.Sub(b.Since) >= r.orphanAge) {
			ids = append(ids, b.Ref.ID)
		}
	}
	r.found = len(ids) > 0
	r.fruitless = r.fruitless && !r.found
	return ids
}

// floorLagMax is how many entries the floor may fall behind while no body is
// freed. A node that starts reads every body that its log names above the
// floor.
const floorLagMax = 1000

func (r *reclaimer) keepFloorClose(at fsm.Index) error {
	if uint64(at) < r.node.Floor()+floorLagMax {
		return nil
	}
	return r.raiseFloor(at)
}

// raiseFloor makes the floor cover at, which this node has applied. For a moment
// after a snapshot was installed consensus does not know that it is committed:
// the next round will do.
func (r *reclaimer) raiseFloor(at fsm.Index) error {
	if err := r.node.RaiseFloor(uint64(at)); err != nil {
		return fmt.Errorf("raise the floor to %d: %w", at, err)
	}
	return nil
}

// unneeded reports whether nobody needs the body of id by this view: its message
// has finished or was a repeat, or no entry has named it and it is old.
func unneeded(view *fsm.State, id mail.QueueID, old bool) bool {
	if view.Live(id) {
		return false
	}
	return view.Known(id) || old
}

func (r *reclaimer) namedAbove(at fsm.Index) map[mail.QueueID]bool {
	named := map[mail.QueueID]bool{}
	if r.controls.Has(controls.EarlyDelete) {
		return named
	}
	for _, ref := range r.node.BodiesNamedAbove(uint64(at)) {
		named[ref.ID] = true
	}
	return named
}
