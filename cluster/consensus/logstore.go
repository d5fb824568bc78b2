package consensus

import (
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// logStore is the log as Raft sees it: the store below, an index of the bodies
// that its entries name, a watch on hanging writes, and a latch: after the
// first failed write nothing is written any more, since what the failed one
// left on the disk is not known.
//
// An entry is settled when it is on stable storage and the body that it names is,
// too. Raft has entries before they are: what a leader appends it has at once, out
// of memory, so that the followers write it while the leader does (section 10.2.1
// of Ongaro's dissertation, "Writing to the leader's disk in parallel"); and
// everybody writes an entry while the spool still writes its body. Raft counts
// such a copy at once, so nothing that follows from that count may be seen before
// it is true:
//
//   - no entry is applied (fsmAdapter), no proposal or change of the
//     configuration answered (start), and no snapshot taken before the entries up
//     to it are settled here;
//   - no follower is told of a commit index beyond what is settled here (sender);
//   - no leader is told that an entry is here before it is settled (gate).
//
// What Raft concludes for itself nobody can hold back. So entries that decide (see
// decides) are settled before it counts them.
//
// A crash may leave entries on the disk that are not settled: those of the last
// batch, since no batch is written before the one before it is settled. The
// start-up check cuts off those whose bodies are missing.
type logStore struct {
	store    raft.LogStore
	latch    *latch
	controls controls.Set
	// leads reports whether this node leads: then Raft's main goroutine, the only
	// one that stores, stores what the node itself proposed.
	leads  func() bool
	names  names
	bodies Bodies
	floor  *floor // what it covers is settled without its body
	stored func([]*raft.Log)

	// cut is how many entries the start-up check cut off.
	cut uint64

	// octets is how much was stored behind the snapshot from which this node
	// started: entries, and the bodies that they name.
	octets atomic.Int64

	writing, deleting stopwatch // Raft deletes from another goroutine, too

	mu sync.Mutex
	// The tail is what this node appended as leader and has not settled.
	//
	// Invariant: it follows the last entry of the store, or is also in it from its
	// beginning on, without a hole.
	// Invariant: it has no entry that decides, and follows the first one of this
	// leader's term.
	// Invariant: there is a goroutine that writes the tail as long as there is
	// one, unless the latch is closed.
	tail       []raft.Log
	tailOctets int
	flushing   bool
	moved      chan struct{} // closed and replaced when the tail becomes shorter, or its writer ends
	// unsettled are the bodies that the last batch in the store names, until it is
	// known that they are held.
	unsettled []namedBody
}

// An attester is a log that knows, when it is opened, up to which index all entries
// had been settled when its last batch was written. Of what is behind that index
// perhaps nobody was told.
type attester interface{ Attested() uint64 }

// tailOctetsMax bounds the tail. When it is full, Raft's main goroutine waits for
// the disk, as it does on a follower.
const tailOctetsMax = 4 << 20

var _ raft.MonotonicLogStore = (*logStore)(nil)

// FirstIndex returns the index of the first entry, zero where there is none.
func (s *logStore) FirstIndex() (uint64, error) {
	s.mu.Lock()
	tail := s.tail
	s.mu.Unlock()
	first, err := s.store.FirstIndex()
	if err == nil && first == 0 && len(tail) > 0 {
		first = tail[0].Index
	}
	return first, err
}

// LastIndex returns the index of the last entry, zero where there is none.
func (s *logStore) LastIndex() (uint64, error) {
	s.mu.Lock()
	tail := s.tail
	s.mu.Unlock()
	if n := len(tail); n > 0 {
		return tail[n-1].Index, nil
	}
	return s.store.LastIndex()
}

// GetLog returns ErrLogNotFound as it is: Raft compares it by ==. Over any other
// error, which is an entry that cannot be read any more, Raft would panic. The
// node ends instead; what Raft does with the empty entry that it gets then,
// nobody hears.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	if s.inTail(index, l) {
		return nil
	}
	err := s.store.GetLog(index, l)
	if err == nil || err == raft.ErrLogNotFound {
		return err
	}
	if err := s.latch.part(damaged(fmt.Errorf("entry %d of the log: %w", index, err))); err != nil {
		return err
	}
	*l = raft.Log{Index: index, Type: raft.LogNoop}
	return nil
}

func (s *logStore) inTail(index uint64, l *raft.Log) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tail) == 0 || index < s.tail[0].Index || index-s.tail[0].Index >= uint64(len(s.tail)) {
		return false
	}
	*l = s.tail[index-s.tail[0].Index]
	return true
}

// IsMonotonic makes Raft drop the whole log when a snapshot is installed,
// instead of keeping what may conflict with it behind a gap.
func (s *logStore) IsMonotonic() bool { return true }

// StoreLog stores one entry.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs stores entries: durably on return, unless this node leads and none of
// them decides. Only Raft's main goroutine calls it. It never waits for a body to
// arrive: that would stop elections and heartbeats with it. It may wait for the
// disk of this node.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	if err := s.latch.Err(); err != nil {
		return err
	}
	octets, err := s.names.add(logs)
	if err != nil {
		return err
	}
	if s.stored != nil {
		s.stored(logs)
	}
	if s.leads != nil && s.leads() && !s.controls.Has(controls.LatchOff) && !slices.ContainsFunc(logs, decides) {
		err = s.extend(logs)
	} else if err = s.awaitAll(); err == nil { // what this node proposed when it led
		err = s.write(logs)
	}
	if err == nil {
		s.octets.Add(octets)
	}
	return err
}

// decides reports whether Raft itself acts when it counts an entry as committed,
// beyond what is held back here. Such an entry waits for the disk.
//
//   - The first entry of a leader's term: under it Raft counts what is there of
//     older terms (section 5.4.2 of the extended Raft paper). If it was lost in a
//     crash, a server with an entry of a term in between could be elected, and
//     would replace what is settled here and was called committed.
//   - A configuration: Raft takes the next one then. If both were lost, a majority
//     of those before and one of those after them would not meet.
func decides(l *raft.Log) bool { return l.Type != raft.LogCommand && l.Type != raft.LogBarrier }

// extend puts entries into the tail, once it has room.
func (s *logStore) extend(logs []*raft.Log) error {
	for {
		s.mu.Lock()
		if len(s.tail) == 0 || s.tailOctets < tailOctetsMax {
			break
		}
		moved := s.movedLocked()
		s.mu.Unlock()
		select {
		case <-moved:
		case <-s.latch.failed:
			return s.latch.Err()
		}
	}
	defer s.mu.Unlock()
	for _, l := range logs {
		s.tail = append(s.tail, *l) // a copy, since Raft goes on using its own
		s.tailOctets += entryCost(l)
	}
	if !s.flushing {
		s.flushing = true
		go s.flush()
	}
	return nil
}

// flush writes the tail until there is none. What is put in while it writes goes
// together.
func (s *logStore) flush() {
	for {
		s.mu.Lock()
		batch := s.tail
		if len(batch) == 0 || s.latch.Err() != nil {
			s.flushing = false
			s.movedNowLocked()
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		logs, octets := make([]*raft.Log, len(batch)), 0
		for i := range batch {
			logs[i] = &batch[i]
			octets += entryCost(logs[i])
		}
		err := s.write(logs)
		if err == nil {
			err = s.settle()
		}
		s.mu.Lock()
		if err == nil {
			if s.tail = s.tail[len(batch):]; len(s.tail) == 0 {
				s.tail = nil
			}
			s.tailOctets -= octets
			s.movedNowLocked()
		}
		s.mu.Unlock()
	}
}

func (s *logStore) movedLocked() <-chan struct{} {
	if s.moved == nil {
		s.moved = make(chan struct{})
	}
	return s.moved
}

func (s *logStore) movedNowLocked() {
	if s.moved != nil {
		close(s.moved)
		s.moved = nil
	}
}

// write stores a batch of entries durably, once the batch before it is settled.
func (s *logStore) write(logs []*raft.Log) error {
	if err := s.settle(); err != nil {
		return err
	}
	named, err := s.named(logs)
	if err != nil {
		return err
	}
	if len(named) > 0 {
		s.bodies.Hasten() // so that they are written while the entries are
	}
	if err := s.writing.time(func() error { return s.store.StoreLogs(logs) }); err != nil {
		// The names stay: the entries may have reached the disk.
		return s.failed(fmt.Errorf("store %d log entries from %d: %w", len(logs), logs[0].Index, err))
	}
	s.mu.Lock()
	s.unsettled = named
	s.mu.Unlock()
	return nil
}

// named returns the bodies that these entries name and that they need to be settled.
func (s *logStore) named(logs []*raft.Log) (named []namedBody, err error) {
	if s.bodies == nil {
		return nil, nil
	}
	for _, l := range logs {
		ref, err := bodyOf(l)
		if err != nil {
			return nil, err
		}
		if ref != nil && l.Index > s.floor.value.Load() {
			named = append(named, namedBody{l.Index, *ref})
		}
	}
	return named, nil
}

// settle waits until the bodies that the last batch in the store names are held.
// The disk that it waits for is this node's.
func (s *logStore) settle() error {
	s.mu.Lock()
	named := s.unsettled
	s.mu.Unlock()
	if len(named) == 0 || s.controls.Has(controls.WrittenCounts) {
		return nil
	}
	for _, b := range named {
		if err := s.bodies.Await(b.ref); err != nil {
			return s.failed(fmt.Errorf("body %s of entry %d: %w", b.ref, b.index, err))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.unsettled) > 0 && &s.unsettled[0] == &named[0] { // of the same batch
		s.unsettled = nil
	}
	return nil
}

// settled returns index, or the last index before it up to which everything is
// settled.
func (s *logStore) settled(index uint64) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.controls.Has(controls.WrittenCounts) {
		return index
	}
	if len(s.tail) > 0 {
		index = min(index, s.tail[0].Index-1)
	}
	if len(s.unsettled) > 0 {
		index = min(index, s.unsettled[0].index-1)
	}
	return index
}

// await waits until everything up to index is settled. An error means that it
// never will be: the node has failed.
func (s *logStore) await(index uint64) error {
	for {
		s.mu.Lock()
		if len(s.tail) == 0 || s.tail[0].Index > index || s.controls.Has(controls.WrittenCounts) {
			named := len(s.unsettled) > 0 && s.unsettled[0].index <= index
			s.mu.Unlock()
			if named {
				return s.settle()
			}
			return nil
		}
		moved := s.movedLocked()
		s.mu.Unlock()
		select {
		case <-moved:
		case <-s.latch.failed:
			return s.latch.Err()
		}
	}
}

// awaitAll is await for what is in the log now.
func (s *logStore) awaitAll() error {
	s.mu.Lock()
	last := uint64(0)
	if n := len(s.tail); n > 0 {
		last = s.tail[n-1].Index
	} else if n := len(s.unsettled); n > 0 {
		last = s.unsettled[n-1].index
	}
	s.mu.Unlock()
	return s.await(last)
}

// end waits until nothing is written any more. Raft has ended.
func (s *logStore) end() {
	for {
		s.mu.Lock()
		if !s.flushing {
			s.mu.Unlock()
			return
		}
		moved := s.movedLocked()
		s.mu.Unlock()
		<-moved
	}
}

// DeleteRange deletes the entries from lowest to highest, both included.
func (s *logStore) DeleteRange(lowest, highest uint64) error {
	if err := s.latch.Err(); err != nil {
		return err
	}
	if err := s.await(highest); err != nil {
		return err
	}
	if err := s.deleting.time(func() error { return s.store.DeleteRange(lowest, highest) }); err != nil {
		return s.failed(fmt.Errorf("delete log entries %d to %d: %w", lowest, highest, err))
	}
	s.names.drop(lowest, highest)
	return nil
}

func (s *logStore) failed(err error) error {
	if s.controls.Has(controls.LatchOff) {
		return err
	}
	return s.latch.fail(fmt.Errorf("%w: %w", ErrDisk, err))
}
