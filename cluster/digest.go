package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
)

// digest returns the digest of this node's copy of the queue as the first entry from
// after on leaves it, and that entry's index: the same one on every node. It waits for
// the entry.
func (m *Member) digest(ctx context.Context, after fsm.Index) (peer.Digest, error) {
	select {
	case m.digesting <- struct{}{}: // a long queue takes seconds
		defer func() { <-m.digesting }()
	case <-ctx.Done():
		return peer.Digest{}, context.Cause(ctx)
	}
	got := make(chan *fsm.State, 1)
	if !m.replica.mark(after, got) {
		return peer.Digest{}, peer.ErrPassed
	}
	defer m.replica.unmark(got)
	select {
	case state := <-got:
		if state == nil {
			return peer.Digest{}, peer.ErrPassed
		}
		return peer.Digest{Index: uint64(state.Applied()), Sum: state.Digest(), Messages: uint64(state.Totals().Messages)}, nil
	case <-ctx.Done():
		return peer.Digest{}, fmt.Errorf("nothing more was applied: %w", context.Cause(ctx))
	}
}

// The nodes are asked to look at an entry that is still to come: the next one at first,
// which is proposed when all have heard of it, and then, since a busy cluster may have
// applied it before, one further away.
const (
	digestNudge       = time.Second // how long all have to hear of it
	digestTries       = 5
	digestAheadFactor = 16
	// digestTimeout is how long one try may take, on each node.
	digestTimeout = 30 * time.Second
)

// A Copy is what one server said of its copy of the queue.
type Copy struct {
	Server fsm.NodeName
	peer.Digest
	Err error // why it said nothing
}

// Compare asks every server for the digest of its copy of the queue at one and the same
// entry. It returns one Copy for each, in the order of their names.
func (m *Member) Compare(ctx context.Context) []Copy {
	names := m.servers()
	copies := make([]Copy, len(names))
	ahead := fsm.Index(1)
	for try := range digestTries {
		at := m.farthest() + ahead
		var asked sync.WaitGroup
		for i, name := range names {
			asked.Go(func() {
				ctx, cancel := context.WithTimeout(ctx, digestTimeout)
				defer cancel()
				copies[i] = Copy{Server: fsm.NodeName(name)}
				if fsm.NodeName(name) == m.name {
					copies[i].Digest, copies[i].Err = m.digest(ctx, at)
				} else {
					copies[i].Digest, copies[i].Err = m.peers.Digest(ctx, name, uint64(at))
				}
			})
		}
		answered := make(chan struct{})
		var nudging sync.WaitGroup
		nudging.Go(func() { m.nudge(ctx, answered) })
		asked.Wait()
		close(answered)
		nudging.Wait()
		passed := false
		for _, c := range copies {
			passed = passed || errors.Is(c.Err, peer.ErrPassed)
		}
		if !passed || try == digestTries-1 {
			break
		}
		ahead *= digestAheadFactor
	}
	return copies
}

// nudge has entries come that change nothing, until it is over.
func (m *Member) nudge(ctx context.Context, over <-chan struct{}) {
	ctx, cancel := context.WithTimeout(ctx, digestTimeout)
	defer cancel()
	for {
		select {
		case <-time.After(digestNudge):
		case <-over:
			return
		case <-ctx.Done():
			return
		}
		if _, err := m.Do(ctx, fsm.Settle{}); err != nil {
			m.log.Debug("no entry to compare the queue at", "cause", err)
		}
	}
}

// farthest is the last entry that this node knows to have been committed.
func (m *Member) farthest() fsm.Index {
	return max(m.replica.appliedIndex(), fsm.Index(m.node.CommitIndex()))
}
