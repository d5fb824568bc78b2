package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// barrierRetry is how long a new leader waits after a barrier that failed for
// another reason than lost leadership.
const barrierRetry = 100 * time.Millisecond

// leadership tells those who wait when this node leads.
type leadership struct {
	mu      sync.Mutex
	current context.Context // nil while not leading, or before the barrier
	changed chan struct{}   // closed and replaced at each change
}

func (l *leadership) set(ctx context.Context) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.current = ctx
	close(l.changed)
	l.changed = make(chan struct{})
}

func (l *leadership) get() (context.Context, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current, l.changed
}

// watchLeadership follows Raft in and out of leadership. Raft waits for us to
// take each change, so none is missed.
func (n *Node) watchLeadership() {
	var settling sync.WaitGroup
	end := func() {} // ends the running leadership
	defer func() {
		end()
		settling.Wait()
		n.leadership.set(nil)
	}()
	for {
		select {
		case <-n.closing:
			return
		case leads := <-n.notify:
			end()
			settling.Wait()
			n.leadership.set(nil)
			if !leads {
				continue
			}
			ctx, cancel := context.WithCancel(context.Background())
			end = cancel
			settling.Go(func() {
				if n.settle(ctx) {
					n.leadership.set(ctx)
				}
			})
		}
	}
}

// settle waits until the FSM has applied everything that earlier leaders
// committed. False means that leadership ended first.
func (n *Node) settle(ctx context.Context) bool {
	for {
		p, err := start(n, ctx, func(timeout time.Duration) raft.Future { return n.raft.Barrier(timeout) })
		if err == nil {
			_, err = p.wait(ctx)
		}
		switch {
		case ctx.Err() != nil, errors.Is(err, ErrShutdown):
			return false
		case err == nil:
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(barrierRetry):
		}
	}
}

// observeLeader is shown all that Raft tells its observers, and passes on that
// the leader has changed.
func (n *Node) observeLeader(o *raft.Observation) bool {
	if _, ok := o.Data.(raft.LeaderObservation); ok {
		select {
		case n.leaderNews <- struct{}{}:
		default:
		}
	}
	return false // nobody else is to be shown it
}

// LeaderChanged returns a channel that carries a value once Leader, or the Term
// that it leads in, may differ from what it was: Raft knows of no leader in
// between, even if the same one wins again. Only one goroutine may receive.
func (n *Node) LeaderChanged() <-chan struct{} { return n.leaderNews }

// VerifyLeader returns nil when a majority of the voters has confirmed, since
// the call, that this node leads. What the FSM had applied before the call is
// then no older than anything that any leader has answered before the call.
func (n *Node) VerifyLeader(ctx context.Context) error {
	future, err := start(n, ctx, func(time.Duration) raft.Future { return n.raft.VerifyLeader() })
	if err != nil {
		return fmt.Errorf("verify leadership: %w", err)
	}
	if _, err := future.wait(ctx); err != nil {
		return fmt.Errorf("verify leadership: %w", err)
	}
	return nil
}

// WhileLeader runs fn in each leadership of this node, the running one
// included, once the FSM has caught up with what was committed before it. The
// ctx of fn ends with the leadership or with the node. Fn never runs twice at
// the same time: the next leadership's run begins when the last one's has
// returned. Shutdown waits for it.
func (n *Node) WhileLeader(fn func(ctx context.Context)) {
	if !n.begin() {
		return
	}
	go func() {
		defer n.running.Done()
		var done context.Context // the leadership that fn has seen
		for {
			ctx, changed := n.leadership.get()
			if ctx != nil && ctx != done && ctx.Err() == nil {
				fn(ctx)
				done = ctx
				continue
			}
			select {
			case <-changed:
			case <-n.closing:
				return
			}
		}
	}()
}
