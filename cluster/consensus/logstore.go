package consensus

import (
	"fmt"
	"sync/atomic"
	"time"

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
	stallMax time.Duration
	stored   func([]*raft.Log)

	// writing is when the running StoreLogs began, nil when none runs.
	writing atomic.Pointer[time.Time]
}

var _ raft.MonotonicLogStore = (*logStore)(nil)

func (s *logStore) FirstIndex() (uint64, error) { return s.store.FirstIndex() }
func (s *logStore) LastIndex() (uint64, error)  { return s.store.LastIndex() }

// GetLog returns the store's error as it is: Raft compares it by ==.
func (s *logStore) GetLog(index uint64, l *raft.Log) error { return s.store.GetLog(index, l) }

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
	if err := s.names.add(logs); err != nil {
		return err
	}
	if s.stored != nil {
		s.stored(logs)
	}
	now := time.Now()
	s.writing.Store(&now)
	err := s.store.StoreLogs(logs)
	s.writing.Store(nil)
	if err != nil {
		// The names stay: the entries may have reached the disk.
		return s.failed(fmt.Errorf("store %d log entries from %d: %w", len(logs), logs[0].Index, err))
	}
	return nil
}

// DeleteRange deletes the entries from lowest to highest, both included.
func (s *logStore) DeleteRange(lowest, highest uint64) error {
	if err := s.latch.Err(); err != nil {
		return err
	}
	if err := s.store.DeleteRange(lowest, highest); err != nil {
		return s.failed(fmt.Errorf("delete log entries %d to %d: %w", lowest, highest, err))
	}
	s.names.drop(lowest, highest)
	return nil
}

func (s *logStore) failed(err error) error {
	if s.latchOff {
		return err
	}
	return s.latch.fail(err)
}

// stalled reports whether a write has been running for longer than it may.
func (s *logStore) stalled() bool {
	began := s.writing.Load()
	return began != nil && time.Since(*began) > s.stallMax
}
