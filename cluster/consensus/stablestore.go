package consensus

import (
	"fmt"

	"github.com/hashicorp/raft"
)

// stableStore keeps term and vote. Raft panics when it cannot write its term,
// so a failed write does not return while the node runs: it closes the latch
// and waits for Shutdown.
type stableStore struct {
	store   raft.StableStore
	latch   *latch
	writing stopwatch
}

func (s *stableStore) Get(key []byte) ([]byte, error)       { return s.store.Get(key) }
func (s *stableStore) GetUint64(key []byte) (uint64, error) { return s.store.GetUint64(key) }
func (s *stableStore) Set(key, value []byte) error {
	return s.write(key, func() error { return s.store.Set(key, value) })
}
func (s *stableStore) SetUint64(key []byte, v uint64) error {
	return s.write(key, func() error { return s.store.SetUint64(key, v) })
}

// write does one write. Only one goroutine of Raft's writes.
func (s *stableStore) write(key []byte, write func() error) error {
	if err := s.latch.Err(); err != nil {
		return s.latch.part(err)
	}
	if err := s.writing.time(write); err != nil {
		return s.latch.part(fmt.Errorf("%w: store %s: %w", ErrDisk, key, err))
	}
	return nil
}
