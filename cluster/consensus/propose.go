package consensus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Proposal is a command to be appended, with the body that it names, if any.
type Proposal struct {
	Data []byte
	Body *mail.BodyRef
}

// An Answer is what came of a Proposal: what the FSM answered once the entry
// was committed and applied, or an error.
//
// An error that is ErrNotAppended is certain: the entry is in no log, or has no
// effect. Any other is ErrOutcomeUnknown: the entry goes on by itself, and its
// body stays pinned until Raft has decided. Ask again with the same queue id.
type Answer struct {
	Value any
	Err   error
}

// Propose is ProposeAll for one command.
func (n *Node) Propose(ctx context.Context, data []byte, body *mail.BodyRef) (any, error) {
	a := n.ProposeAll(ctx, []Proposal{{Data: data, Body: body}})[0]
	return a.Value, a.Err
}

// ProposeAll appends commands here, which must be the leader, and returns an
// Answer for each. The end of ctx leaves those unknown that are not decided.
//
// What is too large, or names a body that is not held, is refused by itself. Of
// the others, in their order, none has an effect unless those before it were
// appended before it: they share a term, and what Raft does not take ends the
// batch.
func (n *Node) ProposeAll(ctx context.Context, proposals []Proposal) []Answer {
	answers := make([]Answer, len(proposals))
	cause := n.latch.Err()
	if cause == nil && n.raft.State() != raft.Leader {
		cause = ErrNotLeader
	}
	if cause != nil {
		for i := range answers {
			answers[i].Err = notAppended(cause)
		}
		return answers
	}
	b := &batch{node: n, term: n.raft.CurrentTerm(), decided: make(chan decision, len(proposals))}
	for i, p := range proposals {
		if err := b.add(i, p, len(proposals) > 1); err != nil {
			answers[i].Err = notAppended(err)
		}
	}
	left := len(b.entries)
	if left > 0 && !n.begin() {
		b.refuse(0, ErrShutdown)
	} else if left > 0 {
		go b.run(ctx)
	}
	decided := make([]bool, len(proposals))
	for ; left > 0; left-- {
		select {
		case d := <-b.decided:
			answers[d.position], decided[d.position] = d.Answer, true
			continue
		case <-ctx.Done():
		}
		break
	}
	if left > 0 {
		b.giveUp(context.Cause(ctx), answers, decided)
	}
	return answers
}

// A batch is proposals on their way through Raft. One goroutine asks for all, and
// one waits for each in turn: a future can be neither given up nor left alone,
// and that of an entry which is not committed never ends while the leader stays.
// They are two because asking may have to wait for a place that an earlier entry
// of this or another batch gives back when it has ended.
type batch struct {
	node    *Node
	term    uint64
	entries []batchEntry
	decided chan decision // has room for every entry

	mu      sync.Mutex
	given   int  // how many entries Raft was given
	stopped bool // it is given no more
}

type batchEntry struct {
	position int // among the proposals
	entry    raft.Log
	release  func() // the pin
	future   raft.ApplyFuture
}

type decision struct {
	position int
	Answer
}

// add takes a proposal in, its body pinned, or returns why it must not be
// appended.
func (b *batch) add(position int, p Proposal, several bool) error {
	name := extension{body: p.Body}
	if several {
		name.term = b.term
	}
	e := batchEntry{position: position, entry: raft.Log{Data: p.Data, Extensions: name.encode()}, release: func() {}}
	if bytes := len(e.entry.Data) + len(e.entry.Extensions); bytes > EntryBytesMax {
		return fmt.Errorf("%w: %d octets, at most %d", ErrTooLarge, bytes, EntryBytesMax)
	}
	if p.Body != nil && !b.node.config.Controls.Has(controls.RuleOff) {
		unpin, held := b.node.config.Bodies.Pin(*p.Body)
		if !held {
			return fmt.Errorf("%w: %s", ErrBodyNotHeld, p.Body)
		}
		e.release = unpin
	}
	b.entries = append(b.entries, e)
	return nil
}

// run has Raft append the entries and sees each to its end.
func (b *batch) run(ctx context.Context) {
	defer b.node.running.Done()
	asked := make(chan batchEntry, len(b.entries))
	b.node.running.Go(func() { b.await(asked) })
	defer close(asked)
	for i := range b.entries {
		if cause := b.ask(ctx, &b.entries[i]); cause != nil {
			b.refuse(i, cause)
			return
		}
		asked <- b.entries[i]
	}
}

// await answers entries that Raft was given.
func (b *batch) await(asked <-chan batchEntry) {
	for e := range asked {
		err := e.future.Error()
		e.release()
		<-b.node.proposals
		b.decided <- decision{e.position, answerOf(e.future, err)}
	}
}

// ask gives Raft one entry. An error means that it did not take it.
func (b *batch) ask(ctx context.Context, e *batchEntry) error {
	n := b.node
	select {
	case n.proposals <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-n.closing:
		return ErrShutdown
	}
	timeout := enqueueMax
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	var err error
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case timeout <= 0 || !b.give():
		err = context.DeadlineExceeded
	default:
		e.future = n.raft.ApplyLog(e.entry, timeout)
		if endWith(e.future, n.ended) {
			return nil
		}
		err = e.future.Error() // of a future that was none: at once
	}
	<-n.proposals
	return err
}

// give counts one more entry as given to Raft. It reports false when nobody
// waits any more: what was not given then is in no log.
func (b *batch) give() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.stopped {
		return false
	}
	b.given++
	return true
}

// giveUp answers what is not decided when the caller's ctx ends.
func (b *batch) giveUp(cause error, answers []Answer, decided []bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stopped = true
	for i := range b.entries {
		position := b.entries[i].position // the rest is run's
		switch {
		case decided[position]:
		case i < b.given:
			answers[position].Err = outcomeUnknown(cause)
		default:
			answers[position].Err = notAppended(cause)
		}
	}
}

// refuse answers the entries from the given one on: they are in no log.
func (b *batch) refuse(from int, cause error) {
	if errors.Is(cause, raft.ErrNotLeader) {
		cause = ErrNotLeader
	}
	for _, e := range b.entries[from:] {
		e.release()
		b.decided <- decision{e.position, Answer{Err: notAppended(cause)}}
	}
}

// answerOf is the answer to an entry whose future has ended.
func answerOf(f raft.ApplyFuture, err error) Answer {
	if err != nil {
		return Answer{Err: classify(err)}
	}
	switch r := f.Response().(type) {
	case result:
		return Answer{Value: r.value}
	case void:
		return Answer{Err: notAppended(errOtherTerm)}
	case error: // The adapter has stopped, and the node with it.
		return Answer{Err: outcomeUnknown(r)}
	default:
		return Answer{Err: outcomeUnknown(fmt.Errorf("no result but %T", r))}
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

// start asks Raft for something other than an entry and waits for the outcome in
// a goroutine of its own. An error means that Raft was not asked.
func start[F raft.Future](n *Node, ctx context.Context, ask func(timeout time.Duration) F) (*pending[F], error) {
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
		if p.err = p.future.Error(); p.err == nil {
			p.err = n.log.awaitAll()
		}
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
