package consensus

import (
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// fsmAdapter is the FSM as Raft sees it.
type fsmAdapter struct {
	fsm   FSM
	latch *latch
	log   *logStore
	// snapshots measures what is done meanwhile.
	snapshots *snapshotter
	// applied is the last command that the FSM has applied.
	applied atomic.Uint64
	// stopped is the entry that could not be understood. Nothing is applied
	// after it, and no snapshot is taken that would claim it was. Only Raft's
	// FSM goroutine uses it.
	stopped error
	// restored is why a snapshot could not be restored before Raft ran. Raft would
	// go on with an older one.
	restored error
}

var _ raft.FSM = (*fsmAdapter)(nil)

// Apply applies one committed command. The gate let no entry pass whose name
// it could not read, so an unreadable one comes from a log that a newer
// version wrote: a node that cannot understand a committed entry stops.
func (a *fsmAdapter) Apply(l *raft.Log) any {
	if a.stopped != nil {
		return a.stopped
	}
	if err := a.log.await(l.Index); err != nil {
		a.stopped = err
		return a.stopped
	}
	x, err := extensionOf(l)
	if err != nil {
		a.stopped = a.latch.fail(fmt.Errorf("apply: %w", err))
		return a.stopped
	}
	if x.term != 0 && x.term != l.Term {
		return void{}
	}
	if a.snapshots.watching.Load() {
		defer a.snapshots.apply(time.Now())
	}
	r := result{a.fsm.Apply(l.Index, l.Data, x.body)}
	a.applied.Store(l.Index)
	return r
}

// A result is what the FSM answered, told apart from what the adapter did.
type result struct{ value any }

// A void is the answer to an entry that counts in another term only. Every node
// passes over it.
type void struct{}

func (a *fsmAdapter) Snapshot() (raft.FSMSnapshot, error) {
	if a.stopped != nil {
		return nil, a.stopped
	}
	// Raft's index of the snapshot counts entries that are never applied here:
	// no-ops, barriers, configurations.
	if err := a.log.awaitAll(); err != nil {
		return nil, err
	}
	s, err := a.snapshots.capture(a.fsm)
	if err != nil {
		return nil, fmt.Errorf("capture the state: %w", err)
	}
	return s, nil
}

// Restore replaces the state. At the start the first snapshot that fails is the
// last: what is whole and cannot be understood is no reason to begin earlier.
func (a *fsmAdapter) Restore(r io.ReadCloser) error {
	if a.restored != nil {
		return a.restored
	}
	err := a.fsm.Restore(r)
	if !a.latch.running.Load() {
		a.restored = err
	} else if err == nil {
		a.snapshots.restored()
	}
	return err
}
