package cluster

import (
	"context"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/fsm"
)

// followEvery is how often a node looks whether it still follows a leader.
const followEvery = 50 * time.Millisecond

// confirmTimeout bounds one question to the leader.
const confirmTimeout = 2 * time.Second

// A leadership is what a node confirmed itself to be current under.
type leadership struct {
	leader consensus.ServerID
	term   uint64
}

// followLoop keeps m.current true while this node's copy of the queue has
// caught up with the leader it follows. A node that has just started, or comes
// back from behind a cut, follows a leader before its copy has caught up: until
// then it must not speak for the cluster. It would refuse, for good, mail for a
// relay domain that it has yet to read about in the log.
//
// The node asks the leader once in each leadership, and again after it has
// known of none.
func (m *Member) followLoop(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	var confirmed leadership
	for {
		leader, ok := m.node.Leader()
		now := leadership{leader, m.node.Term()}
		if !ok || now != confirmed {
			m.current.Store(false)
			confirmed = leadership{}
		}
		if ok && confirmed == (leadership{}) && m.confirm(ctx, leader) {
			confirmed = now
			m.current.Store(true)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// confirm reports whether this node has applied what the leader had applied
// when it was asked.
func (m *Member) confirm(ctx context.Context, leader consensus.ServerID) bool {
	if leader == m.node.ID() {
		return m.leading.Load()
	}
	asked, cancel := context.WithTimeout(ctx, confirmTimeout)
	defer cancel()
	health, err := m.peers.Health(asked, leader.Name())
	if err != nil || !health.Leader {
		return false
	}
	return m.awaitApplied(ctx, fsm.Index(health.Applied)) == nil
}
