package consensus

import (
	"sync"
	"sync/atomic"
)

// A latch keeps the first error that ends the node.
type latch struct {
	mu     sync.Mutex
	err    error
	failed chan struct{}

	// Raft panics over some errors of its stores. So once it runs, such an
	// error is not returned to it before Shutdown has cut all connections:
	// nobody hears of what is not on the disk.
	running  atomic.Bool
	released chan struct{} // closed by Shutdown, when no connection is left
}

func newLatch() *latch {
	return &latch{failed: make(chan struct{}), released: make(chan struct{})}
}

// fail closes the latch with its first error and returns that.
func (l *latch) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err == nil {
		l.err = err
		close(l.failed)
	}
	return l.err
}

// part is fail for an error that Raft must not see. While Raft runs it returns
// only when nobody can hear of what Raft does next, and then nil.
func (l *latch) part(err error) error {
	err = l.fail(err)
	if !l.running.Load() {
		return err
	}
	<-l.released
	return nil
}

// Err returns the first error, or nil.
func (l *latch) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
