package consensus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Propose appends an entry here, which must be the leader, and returns what the
// FSM answered once the entry is committed and applied.
//
// An error that is ErrNotAppended is certain: the entry is in no log. Any
// other is ErrOutcomeUnknown, an ended ctx included: the entry goes on by
// itself, and its body stays pinned until Raft has decided. Ask again with the
// same queue id.
func (n *Node) Propose(ctx context.Context, data []byte, body *mail.BodyRef) (any, error) {
	entry := raft.Log{Data: data}
	if body != nil {
		entry.Extensions = body.Encode()
	}
	if bytes := len(entry.Data) + len(entry.Extensions); bytes > EntryBytesMax {
		return nil, notAppended(fmt.Errorf("%w: %d octets, at most %d", ErrTooLarge, bytes, EntryBytesMax))
	}
	if n.raft.State() != raft.Leader {
		return nil, notAppended(ErrNotLeader)
	}
	if err := n.latch.Err(); err != nil {
		return nil, notAppended(err)
	}
	release := func() {}
	if body != nil && !n.config.controls.ruleOff {
		unpin, held := n.config.Bodies.Pin(*body)
		if !held {
			return nil, notAppended(fmt.Errorf("%w: %s", ErrBodyNotHeld, body))
		}
		release = unpin
	}
	future, err := start(n, ctx, func(timeout time.Duration) raft.ApplyFuture { return n.raft.ApplyLog(entry, timeout) }, release)
	if err != nil {
		release()
		return nil, notAppended(err)
	}
	f, err := future.wait(ctx)
	if err != nil {
		return nil, err
	}
	switch r := f.Response().(type) {
	case result:
		return r.value, nil
	case error: // The adapter has stopped, and the node with it.
		return nil, outcomeUnknown(r)
	default:
		return nil, outcomeUnknown(fmt.Errorf("no result but %T", r))
	}
}

func notAppended(cause error) error { return fmt.Errorf("%w: %w", ErrNotAppended, cause) }

func outcomeUnknown(cause error) error { return fmt.Errorf("%w: %w", ErrOutcomeUnknown, cause) }

// classify sorts Raft's answers to an entry by what is certain.
func classify(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return notAppended(ErrNotLeader)
	case errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return notAppended(err)
	case errors.Is(err, raft.ErrAbortedByRestore):
		// Whatever was appended is replaced by the restored state.
		return notAppended(err)
	default:
		// Leadership lost, a failed write, shutdown: it may be on some disk.
		return outcomeUnknown(err)
	}
}

// A pending is a future of Raft with a goroutine of ours that waits for it.
type pending[F raft.Future] struct {
	done   chan struct{}
	future F
	err    error
}

// start asks Raft for something and waits for the outcome in a goroutine of
// its own, since a future can be neither given up nor left alone: the future
// of an entry that is not committed never ends while the leader stays. After
// is called when it ends. An error means that Raft was not asked.
func start[F raft.Future](n *Node, ctx context.Context, ask func(timeout time.Duration) F, after func()) (*pending[F], error) {
	select {
	case n.proposals <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case <-n.closing:
		return nil, ErrShutdown
	}
	timeout := enqueueMax
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	if err := ctx.Err(); err != nil || timeout <= 0 {
		<-n.proposals
		return nil, context.DeadlineExceeded
	}
	if !n.begin() {
		<-n.proposals
		return nil, ErrShutdown
	}
	p := &pending[F]{done: make(chan struct{})}
	go func() {
		defer n.running.Done()
		p.future = ask(timeout)
		endWith(p.future, n.ended)
		p.err = p.future.Error()
		after()
		<-n.proposals
		close(p.done)
	}()
	return p, nil
}

// wait returns the future once it has ended, or an error when it ended with
// one or ctx ended first.
func (p *pending[F]) wait(ctx context.Context) (F, error) {
	select {
	case <-p.done:
		return p.future, classify(p.err)
	case <-ctx.Done():
		var none F
		return none, outcomeUnknown(context.Cause(ctx))
	}
}
