package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// attemptTimeout bounds one attempt to have an entry committed. It is longer
// than an election, and shorter than the patience of those who ask, so that an
// attempt stuck at a leader that was cut off is followed by one at the next.
const attemptTimeout = 10 * time.Second

// retryPause separates attempts: a leader that has just gone takes an election
// to be replaced.
const retryPause = 100 * time.Millisecond

// Do has an action committed and applied, here or at the leader, and returns
// its result. The result is of the one Apply; errors are ErrNotAccepted and
// ErrOutcomeUnknown. The action must be idempotent or harmless when repeated,
// since Do asks again while ctx allows and no attempt's outcome is unknown.
func (m *Member) Do(ctx context.Context, action fsm.Action) (fsm.Result, error) {
	for {
		got, err := m.attempt(ctx, fsm.Command{Node: m.name, Action: action}, nil)
		if err == nil {
			return got.result, nil
		}
		if !errors.Is(err, ErrNotAccepted) || errors.Is(err, ErrTooLarge) {
			return fsm.Result{}, err
		}
		select {
		case <-ctx.Done():
			return fsm.Result{}, err
		case <-m.stopping:
			return fsm.Result{}, err
		case <-time.After(retryPause):
		}
	}
}

// attempt proposes a command once, at whoever leads now. Settled ids travel
// with it. The index in the answer is known only where the proposal was local.
func (m *Member) attempt(ctx context.Context, c fsm.Command, body *mail.BodyRef) (applied, error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	leader, ok := m.node.Leader()
	if !ok {
		return applied{}, fmt.Errorf("%w: %w", ErrNotAccepted, ErrNoLeader)
	}
	c.Settled = m.settled.newest()
	data, err := fsm.EncodeCommand(c)
	if err == nil && len(c.Settled) > 0 && len(data)+mail.BodyRefBytes > consensus.EntryBytesMax {
		// A long envelope has no room for them: they go ahead on their own.
		if err := m.settleNow(ctx, leader, c.Settled); err != nil {
			return applied{}, fmt.Errorf("%w: settle first: %v", ErrNotAccepted, err)
		}
		c.Settled = nil
		data, err = fsm.EncodeCommand(c)
	}
	if err != nil {
		return applied{}, fmt.Errorf("%w: encode command: %w", ErrNotAccepted, err)
	}
	got, err := m.attemptAt(ctx, leader, data, body)
	if err == nil {
		m.settled.committed(c.Settled)
	}
	return got, err
}

// settleNow has settled ids committed by a command of their own.
func (m *Member) settleNow(ctx context.Context, leader consensus.ServerID, ids []mail.QueueID) error {
	data, err := fsm.EncodeCommand(fsm.Command{Node: m.name, Settled: ids, Action: fsm.Settle{}})
	if err != nil {
		return err
	}
	if _, err := m.attemptAt(ctx, leader, data, nil); err != nil {
		return err
	}
	m.settled.committed(ids)
	return nil
}

func (m *Member) attemptAt(ctx context.Context, leader consensus.ServerID, data []byte, body *mail.BodyRef) (applied, error) {
	if leader == m.node.ID() {
		return m.proposeHere(ctx, data, body)
	}
	answer, err := m.peers.Propose(ctx, leader.Name(), data, body)
	switch {
	case errors.Is(err, peer.ErrTooLarge):
		return applied{}, fmt.Errorf("%w: %w", ErrNotAccepted, ErrTooLarge)
	case errors.Is(err, peer.ErrNotAppended):
		return applied{}, fmt.Errorf("%w: %w", ErrNotAccepted, err)
	case err != nil:
		return applied{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	result, err := fsm.DecodeResult(answer)
	if err != nil {
		return applied{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return applied{result: result}, nil
}

// proposeHere proposes at this node, which must lead.
func (m *Member) proposeHere(ctx context.Context, data []byte, body *mail.BodyRef) (applied, error) {
	got, err := m.node.Propose(ctx, data, body)
	switch {
	case errors.Is(err, consensus.ErrTooLarge):
		return applied{}, fmt.Errorf("%w: %w", ErrNotAccepted, ErrTooLarge)
	case errors.Is(err, consensus.ErrNotAppended):
		return applied{}, fmt.Errorf("%w: %w", ErrNotAccepted, err)
	case err != nil:
		return applied{}, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	a, ok := got.(applied)
	if !ok { // The replica stopped: the entry is committed, and this node is not to be asked.
		return applied{}, fmt.Errorf("%w: %v", ErrOutcomeUnknown, got)
	}
	return a, nil
}
