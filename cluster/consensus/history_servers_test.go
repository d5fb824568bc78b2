package consensus

import (
	"context"
	"slices"
	"time"
)

// registrar takes members out of the configuration and in again, one at a time,
// as the leader of a cluster does: first as a nonvoter, then, when it has what
// the leader has, as a voter.
func (h *history) registrar() {
	for h.pause(h.between(2*time.Second, 12*time.Second)) {
		voters, ok := h.voters()
		if !ok {
			continue
		}
		if len(voters) < h.size {
			h.admit(voters)
			continue
		}
		m := h.member()
		leader := h.c.currentLeader()
		if leader == nil || leader == m { // who is to go hands over first
			continue
		}
		rest := slices.DeleteFunc(slices.Clone(voters), func(name string) bool { return name == m.name })
		h.c.oracle.changing(rest...)
		h.ask(func(ctx context.Context) error { return leader.node().RemoveServer(ctx, m.id()) })
	}
}

// ask has a change made. What became of it voters finds out.
func (h *history) ask(change func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if change(ctx) != nil {
		return false
	}
	h.mu.Lock()
	h.changes++
	h.mu.Unlock()
	return true
}

// voters returns who votes, when that is certain: a leader has committed an entry
// behind the last change.
func (h *history) voters() (names []string, ok bool) {
	leader := h.c.currentLeader()
	if leader == nil {
		return nil, false
	}
	p := leader.running()
	if p == nil {
		return nil, false
	}
	term, before := p.node.Term(), p.node.Servers()
	if leader.propose(5*time.Second, []byte{commandNothing}, nil) != nil {
		return nil, false
	}
	servers := p.node.Servers()
	if p.node.Term() != term || !p.node.IsLeader() || !slices.Equal(before, servers) {
		return nil, false
	}
	for _, s := range servers {
		if s.Voter {
			names = append(names, s.ID.Name())
		}
	}
	h.c.oracle.resolved(names)
	return names, true
}

// resolved says that these are the voters now.
func (o *oracle) resolved(names []string) {
	o.mu.Lock()
	same := slices.Equal(names, o.voters)
	if same {
		o.next = nil
	}
	o.mu.Unlock()
	if !same {
		o.changed(names...)
	}
}

// admit takes a member in that has no vote.
func (h *history) admit(voters []string) {
	leader := h.c.currentLeader()
	i := slices.IndexFunc(h.c.names, func(name string) bool { return !slices.Contains(voters, name) })
	if leader == nil || i < 0 {
		return
	}
	m := h.c.members[h.c.names[i]]
	p := leader.running()
	if p == nil || !h.ask(func(ctx context.Context) error { return p.node.AddNonvoter(ctx, m.id(), m.address()) }) {
		return
	}
	goal := p.node.CommitIndex()
	if !h.c.eventually(10*time.Second, func() bool {
		n := m.node()
		return n != nil && n.CommitIndex() >= goal
	}) {
		return
	}
	h.c.oracle.changing(append(slices.Clone(voters), m.name)...)
	h.ask(func(ctx context.Context) error { return p.node.AddVoter(ctx, m.id(), m.address()) })
}

// admitAll makes all members voters, in the end.
func (h *history) admitAll() {
	if !h.c.eventually(patience, func() bool {
		voters, ok := h.voters()
		if ok && len(voters) < h.size {
			h.admit(voters)
		}
		return ok && len(voters) == h.size
	}) {
		h.c.oracle.violation("a member is not taken in again")
	}
}
