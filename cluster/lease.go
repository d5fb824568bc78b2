package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/dispatch"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Lease is what a Pull brought: messages that this node may attempt, as they
// stand in its own copy of the queue.
type Lease struct {
	Token    fsm.Token
	Messages []fsm.Message
	// Connections is how many this node may have to the next hop; -1 where the
	// leader's version does not say it.
	Connections int
}

// A Wish is what a node asks the leader for: up to Max messages of a domain. With a Max
// of zero it only says what it saw.
type Wish struct {
	Domain      mail.Domain
	Max         int
	Connections int // that it has to the next hop, the one that asks included
	Seen        dispatch.Feedback
}

// catchUpPatience bounds how long a holder waits for its own copy of the queue
// to reach the grant it was just given.
const catchUpPatience = 5 * time.Second

// Pull asks the leader for messages. An empty lease means that nothing is due, or that
// there are too many connections. Whatever the error, the leader may have granted a lease
// that this node does not know of; it ends by expiry, and nothing was begun.
func (m *Member) Pull(ctx context.Context, w Wish) (Lease, error) {
	leader, ok := m.node.Leader()
	if !ok {
		return Lease{}, ErrNoLeader
	}
	r := dispatch.Request{Holder: m.name, Domain: w.Domain, Max: w.Max, Connections: w.Connections, Seen: w.Seen}
	var grant dispatch.Grant
	var err error
	if leader == m.node.ID() {
		grant, err = m.dispatcher.Pull(ctx, r)
	} else {
		var reply peer.PullReply
		reply, err = m.peers.Pull(ctx, leader.Name(), peer.PullRequest{
			Holder: string(r.Holder), Domain: string(r.Domain), Max: r.Max, Connections: r.Connections,
			Seen: peer.Feedback{Token: uint64(w.Seen.Token), Answered: w.Seen.Answered, Deferred: w.Seen.Deferred, Lost: w.Seen.Lost, Mean: w.Seen.Mean},
		})
		grant = dispatch.Grant{Token: fsm.Token(reply.Token), Messages: reply.Messages, Connections: reply.Connections}
	}
	if err != nil {
		return Lease{}, fmt.Errorf("ask %s for a lease: %w", leader, err)
	}
	if len(grant.Messages) == 0 {
		return Lease{Connections: grant.Connections}, nil
	}
	if err := m.awaitApplied(ctx, fsm.Index(grant.Token)); err != nil {
		return Lease{}, fmt.Errorf("lease %d: %w", grant.Token, err)
	}
	lease := Lease{Token: grant.Token, Connections: grant.Connections}
	view := m.View()
	for _, id := range grant.Messages {
		if msg, ok := view.Message(id); ok && msg.ID == id {
			lease.Messages = append(lease.Messages, msg)
		}
	}
	return lease, nil
}

// awaitApplied waits until this node has applied the entry at index.
func (m *Member) awaitApplied(ctx context.Context, index fsm.Index) error {
	ctx, cancel := context.WithTimeout(ctx, catchUpPatience)
	defer cancel()
	for {
		progress := m.replica.progressed.wait()
		if m.replica.appliedIndex() >= index {
			return nil
		}
		select {
		case <-progress:
		case <-m.stopping:
			return ErrStopping
		case <-ctx.Done():
			return fmt.Errorf("this node has applied %d, not yet %d: %w", m.replica.appliedIndex(), index, ctx.Err())
		}
	}
}

// leaderQueue is the queue as the dispatcher sees it: proposals are made here
// or not at all, so that a leader that was deposed learns it.
type leaderQueue struct{ m *Member }

func (q leaderQueue) View() *fsm.State { return q.m.View() }

func (q leaderQueue) Propose(ctx context.Context, action fsm.Action) (fsm.Index, fsm.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if !q.m.node.IsLeader() {
		return 0, fsm.Result{}, dispatch.ErrNotLeading
	}
	data, err := fsm.EncodeCommand(fsm.Command{Node: q.m.name, Action: action})
	if err != nil {
		return 0, fsm.Result{}, fmt.Errorf("encode command: %w", err)
	}
	got, err := q.m.proposeHere(ctx, data)
	if errors.Is(err, ErrNotAccepted) {
		err = fmt.Errorf("%w: %w", dispatch.ErrNotLeading, err)
	}
	return got.index, got.result, err
}
