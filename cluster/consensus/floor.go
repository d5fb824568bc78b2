package consensus

import (
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// floorKey is where the floor lies, beside term and vote: it has to live and
// die with the log.
var floorKey = []byte("HoldfastFloor")

// A floor is a durable index that only grows.
//
// Invariant: every entry at or below the floor is committed.
// Invariant: value is what is on the disk, or less.
type floor struct {
	store    raft.StableStore
	latch    *latch
	controls controls.Set
	// atStart is the floor as it was read before Raft started. Only this value
	// may be told to followers. The live one must not: the gate raises it
	// before Raft has judged the request's term, so
	//
	//  1. a leader of term T with uncommitted entries is cut off from the
	//     majority, which commits others in T+1;
	//  2. it hears of commit index c from the leader of T+1, raises its floor
	//     to c, and has not stepped down yet;
	//  3. it tells a follower that is still in T that c is committed, and that
	//     one applies the uncommitted entries of T.
	//
	// The value at start was learnt before this process could lead any term,
	// so by Leader Completeness our entries up to it are the committed ones.
	atStart uint64
	value   atomic.Uint64
	// writing holds one token: writes are taken in turn. It is no mutex since
	// the write is slow.
	writing chan struct{}
	clock   stopwatch
}

func openFloor(store raft.StableStore, l *latch) (*floor, error) {
	f := &floor{store: store, latch: l, writing: make(chan struct{}, 1)}
	v, err := store.GetUint64(floorKey)
	if err != nil && !isKeyNotFound(err) {
		return nil, fmt.Errorf("read the floor: %w", err)
	}
	f.atStart = v
	f.value.Store(v)
	return f, nil
}

// raise makes the floor at least index, durably, before it returns.
func (f *floor) raise(index uint64) error {
	if f.controls.Has(controls.FloorOff) || f.value.Load() >= index {
		return nil
	}
	f.writing <- struct{}{}
	defer func() { <-f.writing }()
	if f.value.Load() >= index {
		return nil
	}
	if err := f.latch.Err(); err != nil {
		return err
	}
	if err := f.clock.time(func() error { return f.store.SetUint64(floorKey, index) }); err != nil {
		return f.latch.fail(fmt.Errorf("%w: raise the floor to %d: %w", ErrDisk, index, err))
	}
	f.value.Store(index)
	return nil
}
