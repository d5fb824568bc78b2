package consensus

import "sync"

// A latch keeps the first error that ends the node.
type latch struct {
	mu     sync.Mutex
	err    error
	failed chan struct{}
}

func newLatch() *latch { return &latch{failed: make(chan struct{})} }

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

// Err returns the first error, or nil.
func (l *latch) Err() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.err
}
