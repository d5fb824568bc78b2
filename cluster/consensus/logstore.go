package consensus

import (
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// logStore is the log as Raft sees it: the store below, an index of the bodies
// that its entries name, a watch on hanging writes, and a latch: after the
// first failed write nothing is written any more, since what the failed one
// left on the disk is not known.
type logStore struct {
	store    raft.LogStore
	latch    *latch
	latchOff bool
	names    names
	stored   func([]*raft.Log)

	// octets is how much was stored behind the snapshot from which this node
	// started: entries, and the bodies that they name.
	octets atomic.Int64

	writing, deleting stopwatch // Raft deletes from another goroutine, too
}

var _ raft.MonotonicLogStore = (*logStore)(nil)

func (s *logStore) FirstIndex() (uint64, error) { return s.store.FirstIndex() }
func (s *logStore) LastIndex() (uint64, error)  { return s.store.LastIndex() }

// GetLog returns ErrLogNotFound as it is: Raft compares it by ==. Over any other
// error, which is an entry that cannot be read any more, Raft would panic. The
// node ends instead; what Raft does with the empty entry that it gets then,
// nobody hears.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
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

// IsMonotonic makes Raft drop the whole log when a snapshot is installed,
// instead of keeping what may conflict with it behind a gap.
func (s *logStore) IsMonotonic() bool { return true }

// StoreLog stores one entry.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs stores entries. Only Raft's main goroutine calls it. It never
// waits for a body: that would stop elections and heartbeats with it.
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
	if err := s.writing.time(func() error { return s.store.StoreLogs(logs) }); err != nil {
		// The names stay: the entries may have reached the disk.
		return s.failed(fmt.Errorf("store %d log entries from %d: %w", len(logs), logs[0].Index, err))
	}
	s.octets.Add(octets)
	return nil
}

// DeleteRange deletes the entries from lowest to highest, both included.
func (s *logStore) DeleteRange(lowest, highest uint64) error {
	if err := s.latch.Err(); err != nil {
		return err
	}
	if err := s.deleting.time(func() error { return s.store.DeleteRange(lowest, highest) }); err != nil {
		return s.failed(fmt.Errorf("delete log entries %d to %d: %w", lowest, highest, err))
	}
	s.names.drop(lowest, highest)
	return nil
}

func (s *logStore) failed(err error) error {
	if s.latchOff {
		return err
	}
	return s.latch.fail(fmt.Errorf("%w: %w", ErrDisk, err))
}
