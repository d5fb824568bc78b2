package consensus

import (
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// stableStore keeps term and vote. Raft panics when it cannot write its term,
// so a failed write does not return while the node runs: it closes the latch
// and waits for Shutdown, which cuts all connections before it lets go, so
// that nobody hears of a term or vote that is not on the disk.
type stableStore struct {
	store    raft.StableStore
	latch    *latch
	running  atomic.Bool   // false while Start runs: errors are returned
	released chan struct{} // closed by Shutdown, when no connection is left
}

func (s *stableStore) Get(key []byte) ([]byte, error)       { return s.store.Get(key) }
func (s *stableStore) GetUint64(key []byte) (uint64, error) { return s.store.GetUint64(key) }
func (s *stableStore) Set(key, value []byte) error {
	return s.check(key, s.write(func() error { return s.store.Set(key, value) }))
}
func (s *stableStore) SetUint64(key []byte, v uint64) error {
	return s.check(key, s.write(func() error { return s.store.SetUint64(key, v) }))
}

func (s *stableStore) write(write func() error) error {
	if err := s.latch.Err(); err != nil {
		return err
	}
	return write()
}

func (s *stableStore) check(key []byte, err error) error {
	if err == nil {
		return nil
	}
	err = s.latch.fail(fmt.Errorf("store %s: %w", key, err))
	if !s.running.Load() {
		return err
	}
	<-s.released
	return nil
}
