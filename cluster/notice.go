package cluster

import "sync"

// A notice wakes everybody who waits for something to have changed. The zero
// value is ready.
//
// Take the channel first, look second, wait third: a change between the look
// and the wait then finds the channel closed already.
type notice struct {
	mu sync.Mutex
	ch chan struct{}
}

// wait returns a channel that the next signal closes.
func (n *notice) wait() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch == nil {
		n.ch = make(chan struct{})
	}
	return n.ch
}

// signal wakes all who wait.
func (n *notice) signal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ch != nil {
		close(n.ch)
		n.ch = nil
	}
}
