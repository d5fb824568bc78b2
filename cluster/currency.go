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

// followRetry is how long a node waits before it tries again to catch up with a
// leader.
const followRetry = 50 * time.Millisecond

// confirmTimeout bounds one question to the leader, and what follows from it.
const confirmTimeout = 2 * time.Second

// A leadership is what a node confirmed itself to be current under.
type leadership struct {
	leader consensus.ServerID
	term   uint64
}

// followLoop keeps m.current true while this node's copy of the queue has
// caught up with the leader it follows. A node that has just started, or comes
// back from behind a cut, follows a leader before its copy has caught up, and
// until then does not speak for the cluster.
//
// The node asks the leader once in each leadership, and again after it has
// known of none. That makes it useful, not right: what may be refused for good
// only on the newest state asks anew (RelayDomain).
func (m *Member) followLoop(ctx context.Context) {
	var confirmed leadership
	for {
		leader, ok := m.node.Leader()
		now := leadership{leader, m.node.Term()}
		if !ok || now != confirmed {
			m.current.Store(false)
			confirmed = leadership{}
		}
		if ok && confirmed == (leadership{}) && m.catchUp(ctx) == nil {
			confirmed = now
			m.current.Store(true)
		}
		var retry <-chan time.Time
		if ok && confirmed == (leadership{}) {
			retry = time.After(followRetry)
		}
		select {
		case <-ctx.Done():
			return
		case <-m.node.LeaderChanged():
		case <-retry:
		}
	}
}

// catchUp returns nil when this node has applied whatever had been answered by
// any leader before the call.
func (m *Member) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	leader, ok := m.node.Leader()
	if !ok {
		return ErrNoLeader
	}
	if leader == m.node.ID() {
		_, err := m.leaderIndex(ctx)
		return err
	}
	health, err := m.peers.Health(ctx, leader.Name(), peer.Inquiry{})
	if err != nil {
		return fmt.Errorf("ask %s how far it is: %w", leader, err)
	}
	if !health.Leader {
		return fmt.Errorf("%w: %s does not lead", ErrNoLeader, leader)
	}
	return m.awaitApplied(ctx, fsm.Index(health.Applied))
}

// errNotCaughtUp: this node has been elected and has yet to apply what was
// committed before.
var errNotCaughtUp = errors.New("this node does not lead, or not yet")

// leaderIndex returns an index such that a node which has applied it knows
// whatever any leader has answered before the call. Only the leader can tell,
// and it asks a majority whether it still is the leader.
func (m *Member) leaderIndex(ctx context.Context) (fsm.Index, error) {
	if !m.leading.Load() {
		return 0, errNotCaughtUp
	}
	at := m.replica.appliedIndex()
	return at, m.node.VerifyLeader(ctx)
}

// RelayDomain reports whether d is a relay domain. A domain that this node's
// copy of the queue does not know is looked for again after catching up with
// the leader, since mail for it would be refused for good; an error means that
// nobody can tell now.
func (m *Member) RelayDomain(ctx context.Context, d mail.Domain) (bool, error) {
	known := func() bool {
		var ok bool
		m.replica.read(func(s *fsm.State) { _, ok = s.Domain(d) })
		return ok
	}
	if known() {
		return true, nil
	}
	if err := m.caughtUp.do(ctx, func() error { return m.catchUp(m.life) }); err != nil {
		return false, err
	}
	return known(), nil
}

// FirstDomain returns the relay domain that comes first by name.
func (m *Member) FirstDomain() (mail.Domain, bool) {
	domains := m.View().Domains()
	if len(domains) == 0 {
		return "", false
	}
	return domains[0].Name, true
}
