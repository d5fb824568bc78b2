package cluster

import (
	"iter"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A reclaimWorld is a reclaimer on a spool and a replica, with an append rule that
// does as the test says.
type reclaimWorld struct {
	*spool.Spool
	t       *testing.T
	r       *reclaimer
	replica *replica
	index   uint64
	clock   time.Time

	named    []mail.BodyRef // above what is applied
	floor    uint64
	floorErr error
	dooming  func() // called before bodies are doomed
	noWalk   bool
	looked   int // bodies that walks have yielded
}

const testOrphanAge = time.Hour

func newReclaimWorld(t *testing.T) *reclaimWorld {
	w := &reclaimWorld{t: t, replica: quietReplica(), clock: time.Unix(1_790_000_000, 0)}
	s, err := spool.Open(clustertest.NewDisk(1).Mount(), "spool", spool.Options{SegmentBytes: 1 << 20, Now: func() time.Time { return w.clock }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	w.Spool = s
	w.r = &reclaimer{
		bodies: w, node: w, finished: &w.replica.finished, view: w.replica.view,
		now: func() time.Time { return w.clock }, orphanAge: testOrphanAge,
	}
	t.Cleanup(w.r.close)
	w.apply(fsm.PutDomain{Domain: fsm.Domain{Name: replicaDomain, MX: true}}, nil)
	return w
}

func (w *reclaimWorld) BodiesNamedAbove(uint64) []mail.BodyRef { return w.named }
func (w *reclaimWorld) Floor() uint64                          { return w.floor }
func (w *reclaimWorld) RaiseFloor(index uint64) error {
	if w.floorErr == nil {
		w.floor = max(w.floor, index)
	}
	return w.floorErr
}

func (w *reclaimWorld) Walk() iter.Seq[spool.Held] {
	return func(yield func(spool.Held) bool) {
		for b := range w.Spool.Walk() {
			if w.looked++; !w.noWalk && !yield(b) {
				return
			}
		}
	}
}

// Doom holds the round to what it saw before: what an entry names is not to be
// doomed, since that entry's body could not be pinned meanwhile.
func (w *reclaimWorld) Doom(ids []mail.QueueID) []mail.BodyRef {
	for _, ref := range w.named {
		if slices.Contains(ids, ref.ID) {
			w.t.Errorf("%s is doomed, and an entry named it before", ref)
		}
	}
	if w.dooming != nil {
		w.dooming()
	}
	return w.Spool.Doom(ids)
}

func (w *reclaimWorld) Delete(refs []mail.BodyRef) error {
	if at := uint64(w.replica.appliedIndex()); w.floor < at {
		w.t.Errorf("%d bodies deleted with the floor at %d and %d applied", len(refs), w.floor, at)
	}
	return w.Spool.Delete(refs)
}

func (w *reclaimWorld) apply(a fsm.Action, body *mail.BodyRef) {
	w.t.Helper()
	w.index++
	if got, ok := w.replica.Apply(w.index, entry(w.t, a), body).(applied); !ok || got.result.Verdict != fsm.Done && got.result.Verdict != fsm.Repeat {
		w.t.Fatalf("%+v: %+v", a, got)
	}
}

// put stores the body of the nth message.
func (w *reclaimWorld) put(n int) mail.BodyRef {
	w.t.Helper()
	_, ref := acceptOf(w.t, n)
	if err := w.Put(ref, mail.NewBody([]byte{byte(n), '\r', '\n'})); err != nil {
		w.t.Fatal(err)
	}
	return ref
}

func (w *reclaimWorld) accept(n int) mail.BodyRef {
	w.t.Helper()
	a, _ := acceptOf(w.t, n)
	ref := w.put(n)
	w.apply(a, &ref)
	return ref
}

func (w *reclaimWorld) remove(ref mail.BodyRef) { w.t.Helper(); w.apply(fsm.Remove{ID: ref.ID}, nil) }

// round runs a round and compares which bodies are left.
func (w *reclaimWorld) round(left ...mail.BodyRef) {
	w.t.Helper()
	if _, err := w.r.round(); err != nil {
		w.t.Fatal(err)
	}
	var held []mail.BodyRef
	for _, b := range w.Bodies() {
		held = append(held, b.Ref)
	}
	if !slices.Equal(held, left) {
		w.t.Fatalf("left: %v\nwant: %v", held, left)
	}
}

// TestReclaimIsTold: what the queue says has finished goes in the next round,
// without a look at any other body; what still needs its body keeps it.
func TestReclaimIsTold(t *testing.T) {
	w := newReclaimWorld(t)
	w.noWalk = true
	a, b, c := w.accept(1), w.accept(2), w.accept(3)
	w.round(a, b, c)
	w.remove(b)
	w.round(a, c)
	if w.floor != w.index {
		t.Errorf("floor %d, applied %d", w.floor, w.index)
	}
	// A repeat's copy goes, the first one stays.
	repeat, _ := acceptOf(t, 1)
	repeat.Body.ID = idOf(9)
	if err := w.Put(repeat.Body, mail.NewBody([]byte{1, '\r', '\n'})); err != nil {
		t.Fatal(err)
	}
	w.apply(repeat, &repeat.Body)
	w.round(a, c)
}

// TestReclaimOwes: a finished body that is pinned, or named by an entry which is
// not applied, or whose floor cannot be raised, goes when that is over.
func TestReclaimOwes(t *testing.T) {
	w := newReclaimWorld(t)
	w.noWalk = true
	a := w.accept(1)
	release, held := w.Pin(a)
	if !held {
		t.Fatal("not held")
	}
	w.remove(a)
	w.round(a)
	w.round(a)
	release()
	w.named = []mail.BodyRef{a}
	w.round(a)
	w.named = nil
	w.floorErr = consensus.ErrNotCommitted
	if _, err := w.r.round(); err == nil {
		t.Error("deleted without the floor")
	}
	if !w.Held(a) {
		t.Error("gone, or doomed for ever")
	}
	w.floorErr = nil
	w.round()
	if len(w.r.owed) != 0 {
		t.Errorf("still owed: %v", w.r.owed)
	}
}

// TestReclaimLooksAgain: an entry that was appended while the round went on, before
// its body was doomed, keeps it.
func TestReclaimLooksAgain(t *testing.T) {
	w := newReclaimWorld(t)
	w.noWalk = true
	a, b := w.accept(1), w.accept(2)
	w.remove(a)
	w.remove(b)
	w.dooming = func() { w.named = []mail.BodyRef{a} }
	w.round(a)
	if !w.Held(a) {
		t.Error("the body that an entry names is doomed for ever")
	}
	w.dooming, w.named = nil, nil
	w.round()
}

// TestReclaimReadsTheStateLast: what finishes between two steps of a round is
// known to the state that the round goes by, or is left to the next one.
func TestReclaimReadsTheStateLast(t *testing.T) {
	w := newReclaimWorld(t)
	w.noWalk = true
	a := w.accept(1)
	w.r.view = func() *fsm.State {
		view := w.replica.view()
		if view.Live(a.ID) {
			w.remove(a)
		}
		return view
	}
	w.round(a)
	w.round()
}

// TestReclaimWaitsForTheState: a node that has applied nothing knows of no message,
// and frees nothing, however old.
func TestReclaimWaitsForTheState(t *testing.T) {
	w := newReclaimWorld(t)
	a := w.put(1)
	w.r.view = fsm.New
	w.clock = w.clock.Add(2 * testOrphanAge)
	w.round(a)
}

// TestFloorStaysClose: without a body to free the floor follows what is applied,
// in steps.
func TestFloorStaysClose(t *testing.T) {
	w := newReclaimWorld(t)
	for range floorLagMax - 2 {
		w.apply(fsm.Settle{}, nil)
	}
	w.round()
	if w.floor != 0 {
		t.Errorf("floor %d with %d applied", w.floor, w.index)
	}
	w.apply(fsm.Settle{}, nil)
	w.round()
	if w.floor != w.index {
		t.Errorf("floor %d with %d applied", w.floor, w.index)
	}
}

// TestReclaimWalks: what nobody tells of is found all the same: bodies of messages
// that finished before this process began, and bodies that no entry names, once
// they are an orphan's age old.
func TestReclaimWalks(t *testing.T) {
	w := newReclaimWorld(t)
	a, b := w.accept(1), w.accept(2)
	orphan := w.put(3)
	w.remove(b)
	w.replica.finished.take(finishedMax) // as after a restart
	w.round(a, orphan)
	w.clock = w.clock.Add(testOrphanAge - time.Second)
	w.round(a, orphan)
	w.named = []mail.BodyRef{orphan}
	w.clock = w.clock.Add(reclaimRest)
	w.round(a, orphan)
	w.named = nil
	w.round(a)
}

// TestReclaimIsBounded: a round looks at so many bodies however many there are, and
// the rounds together at all.
func TestReclaimIsBounded(t *testing.T) {
	w := newReclaimWorld(t)
	for range reclaimBatchMax + 5 {
		w.replica.finished.add(mail.QueueID{})
	}
	w.round()
	if got := len(w.replica.finished.ids); got != 5 {
		t.Errorf("%d of the finished ids are left to the next round", got)
	}
	w.clock = w.clock.Add(reclaimRest)
	w.r.bodies = manyBodies{w, reclaimStrollMax + reclaimBatchMax + 5, testOrphanAge}
	for _, want := range []int{reclaimStrollMax, reclaimStrollMax + reclaimBatchMax} {
		w.round()
		if w.looked != want {
			t.Errorf("%d orphans found, want %d", w.looked, want)
		}
	}
	w.r.close()
	w.looked = 0
	// The round before found orphans, the next ones find nothing.
	w.r.bodies = manyBodies{w, reclaimWalkMax + reclaimStrollMax + 100, 0}
	for round, want := range []int{reclaimWalkMax, reclaimWalkMax + reclaimStrollMax, reclaimWalkMax + reclaimStrollMax + 100} {
		if _, err := w.r.round(); err != nil {
			t.Fatal(err)
		}
		if w.looked != want {
			t.Errorf("after round %d: %d looked at, want %d", round, w.looked, want)
		}
	}
	var q finishedQueue
	for range finishedMax + 1 {
		q.add(mail.QueueID{})
	}
	if got := len(q.take(2 * finishedMax)); got != finishedMax {
		t.Errorf("%d finished ids are kept", got)
	}
}

// TestReclaimRests: after a walk that found nothing no other begins for a while,
// by a clock that may be set.
func TestReclaimRests(t *testing.T) {
	w := newReclaimWorld(t)
	a := w.accept(1)
	for _, step := range []struct {
		passed time.Duration
		looked int
	}{{0, 1}, {reclaimEvery, 1}, {reclaimRest - reclaimEvery, 2}, {reclaimRest - time.Second, 2}, {-24 * time.Hour, 3}, {reclaimEvery, 3}} {
		w.clock = w.clock.Add(step.passed)
		w.round(a)
		if w.looked != step.looked {
			t.Errorf("%s later %d bodies were looked at, want %d", step.passed, w.looked, step.looked)
		}
	}
}

// manyBodies is a spool of so many bodies that no entry names, and how old they are.
type manyBodies struct {
	*reclaimWorld
	count int
	age   time.Duration
}

func (m manyBodies) Walk() iter.Seq[spool.Held] {
	return func(yield func(spool.Held) bool) {
		for range m.count {
			if m.looked++; !yield(spool.Held{Since: m.clock.Add(-m.age)}) {
				m.looked--
				return
			}
		}
	}
}
