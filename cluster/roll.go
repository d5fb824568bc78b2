package cluster

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
)

const (
	// defaultRollEvery is how often the other servers are asked how they are.
	defaultRollEvery = 2 * time.Second
	// rollLife is how long an answer counts. Who is silent for longer is down,
	// which is Raft's to judge.
	rollLife = 10 * time.Second
)

// A roll is what each other server last said of itself. It is a hint of
// seconds ago, by an authenticated peer.
type roll struct {
	mu   sync.Mutex
	said map[consensus.ServerID]said
}

type said struct {
	peer.Health
	at time.Time
}

// of returns what a server said lately.
func (r *roll) of(id consensus.ServerID) (peer.Health, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s, ok := r.said[id]
	return s.Health, ok && time.Since(s.at) < rollLife
}

// note takes in an answer.
func (r *roll) note(h peer.Health) {
	if h.ServerID == "" {
		return // it is starting
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.said == nil {
		r.said = make(map[consensus.ServerID]said)
	}
	now := time.Now()
	for id, s := range r.said {
		if now.Sub(s.at) >= rollLife {
			delete(r.said, id)
		}
	}
	r.said[consensus.ServerID(h.ServerID)] = said{h, now}
}

// callRoll asks the other servers of the configuration, and whoever else is seen,
// again and again.
func (m *Member) callRoll(ctx context.Context) {
	tick := time.NewTicker(m.rollEvery)
	defer tick.Stop()
	var asking sync.WaitGroup
	defer asking.Wait()
	var mu sync.Mutex
	under := make(map[string]bool) // whose answer is awaited
	for {
		names := m.others()
		m.conditions.keep(names)
		for _, name := range names {
			mu.Lock()
			skip := under[name]
			under[name] = true
			mu.Unlock()
			if skip {
				continue
			}
			index := m.conditions.asking(name, m.replica.appliedIndex())
			asking.Go(func() {
				bounded, cancel := context.WithTimeout(ctx, m.rollEvery)
				defer cancel()
				h, err := m.peers.Health(bounded, name, peer.Inquiry{Brief: true})
				if err == nil {
					m.roll.note(h)
				}
				m.conditions.note(name, h, err, index)
				mu.Lock()
				defer mu.Unlock()
				delete(under, name)
			})
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// servers returns the names of the configuration's servers, each once, sorted.
func (m *Member) servers() []string {
	var names []string
	for _, s := range m.node.Servers() {
		names = append(names, s.ID.Name())
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// otherServers returns the same without this node.
func (m *Member) otherServers() []string {
	return slices.DeleteFunc(m.servers(), func(name string) bool { return name == string(m.name) })
}

// others returns everybody else who is in the configuration or seen alive.
func (m *Member) others() []string {
	all := append(m.otherServers(), m.bodies.names()...)
	slices.Sort(all)
	return slices.Compact(all)
}
