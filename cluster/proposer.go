package cluster

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// batchesMax is how many batches of proposals are under way at once. What comes
// meanwhile waits and makes the next batch larger.
const batchesMax = 4

// A proposer has this node's commands proposed at whoever leads, those that wait
// at the same time in one batch. Settled ids go ahead of each batch, in an entry
// of their own: what follows them has no effect without them. Where few ids meet few
// commands each command has them all, and there is no such entry.
type proposer struct {
	// propose proposes a batch once, and returns an outcome for each errand.
	propose func([]*errand) []outcome

	mu sync.Mutex
	// Invariant: underway is positive while something waits.
	waiting  []*errand
	underway int
}

// An errand is one command on its way.
type errand struct {
	data []byte // nil: only the settled ids are to be committed
	body *mail.BodyRef
	done chan outcome // capacity 1
}

func (e *errand) bytes() int { return len(e.data) + mail.BodyRefBytes }

// An outcome is what one attempt ended with. The error is ErrNotAccepted or
// ErrOutcomeUnknown.
type outcome struct {
	applied applied
	err     error
}

// do proposes a command once. The end of ctx leaves the outcome open, unless
// nothing has been done yet.
func (p *proposer) do(ctx context.Context, data []byte, body *mail.BodyRef) (applied, error) {
	e := &errand{data: data, body: body, done: make(chan outcome, 1)}
	p.mu.Lock()
	p.waiting = append(p.waiting, e)
	if p.underway < batchesMax {
		p.underway++
		go p.run()
	}
	p.mu.Unlock()
	select {
	case o := <-e.done:
		return o.applied, o.err
	case <-ctx.Done():
	}
	if p.leave(e) {
		return applied{}, fmt.Errorf("%w: %w", ErrNotAccepted, context.Cause(ctx))
	}
	return applied{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, context.Cause(ctx))
}

// leave takes an errand back. It reports false when it is on its way already.
func (p *proposer) leave(e *errand) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	i := slices.Index(p.waiting, e)
	if i < 0 {
		return false
	}
	p.waiting = slices.Delete(p.waiting, i, i+1)
	return true
}

// take takes the next batch: what waits, up to the limits of one call. When
// nothing waits, the caller is no longer under way.
func (p *proposer) take() []*errand {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.waiting) == 0 {
		p.underway--
		return nil
	}
	n, bytes := 0, 0
	for n < len(p.waiting) && n < peer.ProposalsMax-1 { // one place is the settled ids'
		if bytes += p.waiting[n].bytes(); bytes > peer.ProposalsBytesMax-settledBytesMax && n > 0 {
			break
		}
		n++
	}
	batch := slices.Clone(p.waiting[:n])
	p.waiting = slices.Delete(p.waiting, 0, n)
	return batch
}

// run proposes batches until nothing waits.
func (p *proposer) run() {
	for {
		// Whoever is about to propose goes first: one batch then takes them all.
		runtime.Gosched()
		batch := p.take()
		if len(batch) == 0 {
			return
		}
		for i, o := range p.propose(batch) {
			batch[i].done <- o
		}
	}
}

// proposeBatch proposes a batch at whoever leads now, the settled ids first.
func (m *Member) proposeBatch(batch []*errand) []outcome {
	ctx, cancel := context.WithTimeout(m.life, attemptTimeout)
	defer cancel()
	leader, ok := m.node.Leader()
	if !ok {
		return sameOutcome(len(batch), fmt.Errorf("%w: %w", ErrNotAccepted, ErrNoLeader))
	}
	return proposeBehind(&m.settled, m.name, batch, func(proposals []consensus.Proposal) []outcome {
		return m.proposeAt(ctx, leader, proposals)
	})
}

// proposeBehind proposes a batch behind all settled ids, or with all of them in each
// command. Those that find no place in the same call are committed before it is made.
func proposeBehind(s *settledSet, name fsm.NodeName, batch []*errand, propose func([]consensus.Proposal) []outcome) []outcome {
	var proposals []consensus.Proposal
	ids, all := s.oldest()
	if all && carriable(ids, batch) {
		return proposeWith(s, ids, batch, propose)
	}
	for {
		proposals = make([]consensus.Proposal, 0, 1+len(batch))
		if len(ids) > 0 {
			data, err := fsm.EncodeCommand(fsm.Command{Node: name, Settled: ids, Action: fsm.Settle{}})
			if err != nil {
				return sameOutcome(len(batch), fmt.Errorf("%w: encode settled ids: %w", ErrNotAccepted, err))
			}
			proposals = append(proposals, consensus.Proposal{Data: data})
		}
		if all {
			break
		}
		if err := propose(proposals)[0].err; err != nil {
			// Of the batch itself nothing was proposed, whatever became of the ids.
			return sameOutcome(len(batch), fmt.Errorf("%w: commit settled ids first: %v", ErrNotAccepted, err))
		}
		s.committed(ids)
		ids, all = s.oldest()
	}
	for _, e := range batch {
		if e.data != nil {
			proposals = append(proposals, consensus.Proposal{Data: e.data, Body: e.body})
		}
	}
	outcomes := propose(proposals)
	settled := outcome{} // what comes of an errand without a command
	if len(ids) > 0 {
		settled, outcomes = outcomes[0], outcomes[1:]
		if settled.err == nil {
			s.committed(ids)
		}
	}
	ordered := make([]outcome, len(batch))
	for i, e := range batch {
		ordered[i] = settled
		if e.data != nil {
			ordered[i], outcomes = outcomes[0], outcomes[1:]
		}
	}
	return ordered
}

// An entry of its own costs more than carriedMax ids that stand in commands. A command
// of more than carriedBytesMax stays as long as it is: it may be the longest that an
// entry takes.
const (
	carriedMax      = 32
	carriedBytesMax = 8 << 10
)

// carriable reports whether each command of a batch had better have the ids itself.
func carriable(ids []mail.QueueID, batch []*errand) bool {
	return len(ids) > 0 && len(ids)*len(batch) <= carriedMax &&
		!slices.ContainsFunc(batch, func(e *errand) bool { return e.data == nil || len(e.data) > carriedBytesMax })
}

// proposeWith proposes a batch with the ids in each command, so that none has an
// effect without them, whichever of the others there are.
func proposeWith(s *settledSet, ids []mail.QueueID, batch []*errand, propose func([]consensus.Proposal) []outcome) []outcome {
	proposals := make([]consensus.Proposal, len(batch))
	for i, e := range batch {
		data, err := fsm.WithSettled(e.data, ids)
		if err != nil {
			return sameOutcome(len(batch), fmt.Errorf("%w: %w", ErrNotAccepted, err))
		}
		proposals[i] = consensus.Proposal{Data: data, Body: e.body}
	}
	outcomes := propose(proposals)
	if slices.ContainsFunc(outcomes, func(o outcome) bool { return o.err == nil }) {
		s.committed(ids)
	}
	return outcomes
}

func sameOutcome(n int, err error) []outcome {
	return slices.Repeat([]outcome{{err: err}}, n)
}

// proposeAt proposes at the named leader. The index in an answer is known only
// where that is this node.
func (m *Member) proposeAt(ctx context.Context, leader consensus.ServerID, proposals []consensus.Proposal) []outcome {
	outcomes := make([]outcome, len(proposals))
	if leader == m.node.ID() {
		for i, a := range m.node.ProposeAll(ctx, proposals) {
			outcomes[i] = outcomeHere(a)
		}
		return outcomes
	}
	sent := make([]peer.Proposal, len(proposals))
	for i, p := range proposals {
		sent[i] = peer.Proposal{Command: p.Data, Body: p.Body}
	}
	for i, o := range m.peers.Propose(ctx, leader.Name(), sent) {
		outcomes[i] = outcomeThere(o)
	}
	return outcomes
}

// outcomeHere is what this node's own consensus answered.
func outcomeHere(a consensus.Answer) outcome {
	switch {
	case errors.Is(a.Err, consensus.ErrTooLarge):
		return outcome{err: fmt.Errorf("%w: %w", ErrNotAccepted, ErrTooLarge)}
	case errors.Is(a.Err, consensus.ErrNotAppended):
		return outcome{err: fmt.Errorf("%w: %w", ErrNotAccepted, a.Err)}
	case a.Err != nil:
		return outcome{err: fmt.Errorf("%w: %w", ErrOutcomeUnknown, a.Err)}
	}
	got, ok := a.Value.(applied)
	if !ok { // The replica stopped: the entry is committed, and this node is not to be asked.
		return outcome{err: fmt.Errorf("%w: %v", ErrOutcomeUnknown, a.Value)}
	}
	return outcome{applied: got}
}

// outcomeThere is what another leader answered.
func outcomeThere(o peer.Outcome) outcome {
	switch {
	case errors.Is(o.Err, peer.ErrTooLarge):
		return outcome{err: fmt.Errorf("%w: %w", ErrNotAccepted, ErrTooLarge)}
	case errors.Is(o.Err, peer.ErrNotAppended):
		return outcome{err: fmt.Errorf("%w: %w", ErrNotAccepted, o.Err)}
	case o.Err != nil:
		return outcome{err: fmt.Errorf("%w: %w", ErrOutcomeUnknown, o.Err)}
	}
	result, err := fsm.DecodeResult(o.Result)
	if err != nil {
		return outcome{err: fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)}
	}
	return outcome{applied: applied{result: result}}
}
