package cluster

import (
	"context"
	"sync"
)

// A flight lets many askers share one question whose answer must not be older
// than the asking: who comes while a question is under way waits for the next.
// So there is one question at a time, however many ask.
type flight struct {
	mu   sync.Mutex
	now  *question // under way
	next *question // to be asked when now has its answer
}

type question struct {
	done chan struct{}
	err  error
}

// do returns the answer of a question that was begun after the call.
func (f *flight) do(ctx context.Context, ask func() error) error {
	f.mu.Lock()
	q := f.next
	if q == nil {
		q = &question{done: make(chan struct{})}
		if f.now == nil {
			f.now = q
			go f.run(q, ask)
		} else {
			f.next = q
		}
	}
	f.mu.Unlock()
	select {
	case <-q.done:
		return q.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// run asks until nobody waits any more. The questions outlive each asker, so
// ask has to bound itself.
func (f *flight) run(q *question, ask func() error) {
	for q != nil {
		q.err = ask()
		close(q.done)
		f.mu.Lock()
		q, f.next = f.next, nil
		f.now = q
		f.mu.Unlock()
	}
}
