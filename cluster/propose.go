package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
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
// since Do asks again while ctx allows and no attempt's outcome is unknown. One that
// not every server is known to understand is not proposed: ErrNotUnderstood.
func (m *Member) Do(ctx context.Context, action fsm.Action) (fsm.Result, error) {
	if !m.Understood(action) {
		return fsm.Result{}, fmt.Errorf("%w: %w", ErrNotAccepted, ErrNotUnderstood)
	}
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

// attempt proposes a command once, at whoever leads now. The index in the answer
// is known only where the proposal was local.
func (m *Member) attempt(ctx context.Context, c fsm.Command, body *mail.BodyRef) (applied, error) {
	data, err := fsm.EncodeCommand(c)
	if err != nil {
		return applied{}, fmt.Errorf("%w: encode command: %w", ErrNotAccepted, err)
	}
	if len(data) > consensus.EntryBytesMax {
		return applied{}, fmt.Errorf("%w: %w", ErrNotAccepted, ErrTooLarge)
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return m.proposer.do(ctx, data, body)
}

// proposeHere proposes at this node, which must lead.
func (m *Member) proposeHere(ctx context.Context, data []byte) (applied, error) {
	o := outcomeHere(m.node.ProposeAll(ctx, []consensus.Proposal{{Data: data}})[0])
	return o.applied, o.err
}
