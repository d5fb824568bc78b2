package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
)

// Space is how much of this node's disk is free.
type Space interface {
	// Low: no mail is taken from clients.
	Low() bool
	// Full: no bodies are taken from other nodes either. What is left is Raft's.
	Full() bool
}

// ErrNoRoom: a disk that the next message needs is nearly full.
var ErrNoRoom = errors.New("disk space low")

// Room returns nil while there is room for more mail, and ErrNoRoom where this
// node, the leader, or more than a minority of the voters is low on space. A
// voter of which nothing is heard does not count as low.
func (m *Member) Room() error {
	if m.space.Low() {
		return fmt.Errorf("%w: on this node", ErrNoRoom)
	}
	leader, known := m.node.Leader()
	if known && leader != m.node.ID() && m.saidLow(leader) {
		return fmt.Errorf("%w: on the leader, %s", ErrNoRoom, leader)
	}
	voters, low := 0, 0
	for _, s := range m.node.Servers() {
		if !s.Voter {
			continue
		}
		voters++
		if m.saidLow(s.ID) {
			low++
		}
	}
	if tooManyLow(low, voters) {
		return fmt.Errorf("%w: on %d of %d voters", ErrNoRoom, low, voters)
	}
	return nil
}

// tooManyLow reports whether the voters that are not low are no majority.
func tooManyLow(low, voters int) bool { return low > (voters-1)/2 }

func (m *Member) saidLow(id consensus.ServerID) bool {
	if id == m.node.ID() {
		return m.space.Low()
	}
	h, ok := m.roll.of(id)
	return ok && h.DiskLow
}

// makeWay hands leadership over, once in each, when this node is low on space
// and a voter is not: mail that needs its disk would be refused by all nodes.
func (m *Member) makeWay(ctx context.Context) {
	tick := time.NewTicker(m.rollEvery)
	defer tick.Stop()
	var handed uint64 // the term in which it was done
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		term := m.node.Term()
		if !m.space.Low() || !m.node.IsLeader() || handed == term {
			continue
		}
		to, err := m.node.HandOver(ctx, func(id consensus.ServerID) bool {
			h, ok := m.roll.of(id)
			return ok && !h.DiskLow
		})
		if err != nil {
			continue // nobody fit yet
		}
		handed = term
		m.log.Warn("low on disk space: leadership handed over", "to", to)
	}
}
