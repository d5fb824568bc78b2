package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
)

// A census is what the leader knows when it decides about the servers of the
// cluster.
type census struct {
	servers []consensus.Server
	seen    []Sighting
	// said is how each node is, by name; this one included.
	said map[string]Condition
	now  time.Time
}

// A step is one change of Raft's configuration.
type step struct {
	kind    stepKind
	id      consensus.ServerID
	address string // but for a removal
}

type stepKind uint8

const (
	stepJoin    stepKind = iota + 1 // becomes a nonvoter
	stepPromote                     // becomes a voter
	stepRemove
)

// answers reports whether a server has said lately how it is, under that id.
func (c census) answers(id consensus.ServerID) (Condition, bool) {
	said := c.said[id.Name()]
	return said, said.ServerID == string(id) && said.Err == nil && c.now.Sub(said.At) < rollLife
}

// joining returns the nonvoters.
func (c census) joining() []consensus.Server {
	return slices.DeleteFunc(slices.Clone(c.servers), func(s consensus.Server) bool { return s.Voter })
}

// named returns the servers that a node has.
func (c census) named(name string) []consensus.Server {
	return slices.DeleteFunc(slices.Clone(c.servers), func(s consensus.Server) bool { return s.ID.Name() != name })
}

// without tells of the voters that are left when one is removed: how many there
// are, how many of them answer, and how many of these hold every live body.
func (c census) without(id consensus.ServerID) (voters, answer, complete int) {
	for _, s := range c.servers {
		if !s.Voter || s.ID == id {
			continue
		}
		voters++
		if said, ok := c.answers(s.ID); ok {
			answer++
			if said.Complete {
				complete++
			}
		}
	}
	return voters, answer, complete
}

// next returns the step by which a server that joins becomes a voter, if one can
// be taken now. It needs to hold every live body, and to have applied what this
// node had a few seconds ago. Where it takes the place of one that has lost its
// disk, under the same name, that one goes first: it will never vote again, and
// each vote that nobody gives makes a majority harder to reach.
func (c census) next() (step, bool) {
	for _, s := range c.joining() {
		if said, ok := c.answers(s.ID); !ok || !said.Complete {
			continue
		}
		for _, old := range c.named(s.ID.Name()) {
			if old.ID == s.ID {
				continue
			}
			if voters, answer, _ := c.without(old.ID); old.Voter && answer <= voters/2 {
				return step{}, false
			}
			return step{kind: stepRemove, id: old.ID}, true
		}
		return step{stepPromote, s.ID, s.Address}, true
	}
	return step{}, false
}

// add returns the steps that make a node join the cluster, or why it cannot; no
// steps where it has joined already.
func (c census) add(name string) (steps []step, refusal string) {
	var seen *Sighting
	for _, one := range c.seen {
		if one.Name == name && one.Alive {
			seen = &one
		}
	}
	if seen == nil {
		return nil, fmt.Sprintf("no node %s is seen: start it with this cluster's name, CA and gossip key and with a node of the cluster in join, and see that \"holdfast members\" lists it", name)
	}
	id := consensus.ServerID(seen.Name + "/" + seen.Incarnation)
	for _, s := range c.servers {
		switch {
		case s.ID == id && s.Voter:
			return nil, fmt.Sprintf("%s is a voter already", name)
		case s.ID == id:
			return nil, ""
		case !s.Voter && s.ID.Name() != name:
			return nil, fmt.Sprintf("%s is still joining: wait until it is a voter, or remove it", s.ID.Name())
		case !s.Voter: // an earlier life of the same node, which never had a vote
			steps = append(steps, step{kind: stepRemove, id: s.ID})
		}
	}
	said, ok := c.answers(id)
	if !ok {
		return nil, fmt.Sprintf("%s is seen and does not answer this node: see that its cluster port can be reached", name)
	}
	if said.CommandVersion < fsm.CommandVersion {
		return nil, fmt.Sprintf("%s runs an older version, which does not understand what this cluster records: upgrade it first", name)
	}
	return append(steps, step{stepJoin, id, seen.Address}), ""
}

// remove returns the step that takes a node out of the cluster, or why it must
// not be taken. Of a node that joins in the place of its earlier life the joining
// is given up, and nothing else.
//
// Invariant: after a removal a majority of the voters that are left answers; and,
// unless it is forced, a majority of them holds every live body.
func (c census) remove(name string, force bool) (steps []step, refusal string) {
	servers := c.named(name)
	if len(servers) == 0 {
		return nil, fmt.Sprintf("the cluster has no server %s", name)
	}
	for _, s := range servers {
		if !s.Voter {
			return []step{{kind: stepRemove, id: s.ID}}, ""
		}
	}
	for _, s := range c.joining() {
		return nil, fmt.Sprintf("%s is still joining: wait until it is a voter, or remove it", s.ID.Name())
	}
	id := servers[0].ID
	voters, answer, complete := c.without(id)
	switch {
	case voters == 0:
		return nil, fmt.Sprintf("%s is the only voter", name)
	case answer <= voters/2:
		return nil, fmt.Sprintf("only %d of the %d voters that are left would answer, and no majority: nothing could be committed any more", answer, voters)
	case complete <= voters/2 && !force:
		return nil, fmt.Sprintf("only %d of the %d voters that are left are known to hold every queued message: wait until \"holdfast status\" says that they lack none, or force it and risk what only %s holds", complete, voters, name)
	}
	return []step{{kind: stepRemove, id: id}}, ""
}

// census takes stock.
func (m *Member) census() census {
	return census{
		servers: m.node.Servers(), seen: m.directory.Sightings(),
		said: m.Conditions(), now: time.Now(),
	}
}

// take changes Raft's configuration.
func (m *Member) take(ctx context.Context, s step) error {
	var err error
	switch s.kind {
	case stepJoin:
		err = m.node.AddNonvoter(ctx, s.id, s.address)
	case stepPromote:
		err = m.node.AddVoter(ctx, s.id, s.address)
	case stepRemove:
		err = m.node.RemoveServer(ctx, s.id)
	}
	if err != nil {
		return err
	}
	m.log.Info(map[stepKind]string{stepJoin: "server joins", stepPromote: "server is a voter now", stepRemove: "server removed"}[s.kind], "server", s.id)
	return nil
}

// tendServers makes voters of the servers that join, while this node leads, and
// keeps the settings' number of voters.
func (m *Member) tendServers(ctx context.Context) {
	tick := time.NewTicker(m.rollEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !m.leading.Load() || !m.changing.TryLock() {
			continue
		}
		if s, ok := m.census().next(); ok {
			bounded, cancel := context.WithTimeout(ctx, attemptTimeout)
			if err := m.take(bounded, s); err != nil {
				m.log.Warn("servers not changed", "server", s.id, "cause", err)
			}
			cancel()
		}
		m.changing.Unlock()
		if m.View().Now() > 0 { // before that, the settings are the founder's to record
			m.recordSettings(ctx)
		}
	}
}

// changeHere makes a change as leader. The refusal is for people. The error is
// ErrNotAccepted, or ErrOutcomeUnknown.
func (m *Member) changeHere(ctx context.Context, c peer.Membership) (refusal string, err error) {
	if !m.leading.Load() {
		return "", fmt.Errorf("%w: %w", ErrNotAccepted, errNotLeading)
	}
	if !m.changing.TryLock() {
		return "another change of the servers is under way", nil
	}
	defer m.changing.Unlock()
	var steps []step
	switch c.Action {
	case peer.MemberAdd:
		steps, refusal = m.census().add(c.Name)
	case peer.MemberRemove:
		steps, refusal = m.census().remove(c.Name, c.Force)
	default:
		return fmt.Sprintf("unknown action %d", c.Action), nil
	}
	if refusal != "" {
		return refusal, nil
	}
	for i, s := range steps {
		if s.id == m.node.ID() {
			// Whoever leads next can do it.
			to, err := m.node.HandOver(ctx, nil)
			if err == nil {
				err = fmt.Errorf("%s is to lead first", to)
			}
			return "", fmt.Errorf("%w: %w", ErrNotAccepted, err)
		}
		switch err := m.take(ctx, s); {
		case err == nil:
		case errors.Is(err, consensus.ErrNotAppended) && i == 0:
			return "", fmt.Errorf("%w: %w", ErrNotAccepted, err)
		default:
			return "", fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
		}
	}
	return "", nil
}

// ChangeServers adds a node to the cluster, or removes one, here or at the
// leader. The refusal says why it is not done. The error is ErrNotAccepted where
// certainly nothing was changed, or ErrOutcomeUnknown. A node that is added
// becomes a voter by itself, when it lacks nothing.
func (m *Member) ChangeServers(ctx context.Context, c peer.Membership) (refusal string, err error) {
	for {
		refusal, err = m.changeOnce(ctx, c)
		if err == nil || !errors.Is(err, ErrNotAccepted) {
			return refusal, err
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-m.stopping:
			return "", err
		case <-time.After(retryPause):
		}
	}
}

func (m *Member) changeOnce(ctx context.Context, c peer.Membership) (refusal string, err error) {
	leader, ok := m.node.Leader()
	if !ok {
		return "", fmt.Errorf("%w: %w", ErrNotAccepted, ErrNoLeader)
	}
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	if leader == m.node.ID() {
		return m.changeHere(ctx, c)
	}
	refusal, err = m.peers.ChangeServers(ctx, leader.Name(), c)
	switch {
	case errors.Is(err, peer.ErrNotAppended):
		err = fmt.Errorf("%w: %w", ErrNotAccepted, err)
	case err != nil:
		err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	}
	return refusal, err
}
