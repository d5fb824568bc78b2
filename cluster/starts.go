package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
)

// Starts is what this node knows of how often servers have started, itself
// included. A server that says a smaller number of itself has an old copy of its
// data directory: votes and entries are missing in it, and it must not take
// part. It exists before its Member does, since a port asks it.
//
// A number is known when it stands in an entry of this node's log, committed or
// not: only the server itself proposes it, and has counted that start durably
// before.
type Starts struct {
	mu      sync.Mutex
	logged  map[consensus.ServerID]uint64 // in the log when this node started
	applied func(fsm.ServerID) uint64     // nil until the log has been read

	// outdated is closed when this node turned out to be the one with the old
	// copy; why is then set.
	outdated chan struct{}
	why      error
}

// NewStarts returns a Starts that knows nothing yet.
func NewStarts() *Starts {
	return &Starts{logged: make(map[consensus.ServerID]uint64), outdated: make(chan struct{})}
}

// Known returns the newest start of a server that is known, 0 for none, and
// false as long as this node has not read its log.
func (s *Starts) Known(id consensus.ServerID) (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.applied == nil {
		return 0, false
	}
	return max(s.logged[id], s.applied(fsm.ServerID(id))), true
}

// ReportOutdated says that another node has refused us because of our data
// directory.
func (s *Starts) ReportOutdated(cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == nil {
		s.why = cause
		close(s.outdated)
	}
}

// observe takes in a command of the log.
func (s *Starts) observe(data []byte) {
	if !fsm.MayRecordStart(data) {
		return // nearly all
	}
	c, err := fsm.DecodeCommand(data)
	if err != nil {
		return // Apply will say what is wrong with it
	}
	if a, ok := c.Action.(fsm.RecordStart); ok {
		s.mu.Lock()
		defer s.mu.Unlock()
		id := consensus.ServerID(a.Server)
		s.logged[id] = max(s.logged[id], a.Number)
	}
}

// complete says that the log has been read, and who knows what is applied.
func (s *Starts) complete(applied func(fsm.ServerID) uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.applied = applied
}

// seen is what this node tells a server of itself.
func (m *Member) seen(id consensus.ServerID) (peer.Seen, bool) {
	number, ok := m.starts.Known(id)
	p := m.node.Witnessed(id)
	return peer.Seen{Start: number, Term: p.Term, VoteTerm: p.VoteTerm, Index: p.Index}, ok
}

const (
	// askPatience bounds how long a start waits for what the others know of this
	// node. Who is not reached then is asked by each Raft connection.
	askPatience = 3 * time.Second
	// askPause is how often a start looks for others to ask.
	askPause = 50 * time.Millisecond
)

// askOthers asks every other node, before Raft runs here, what it has seen of
// this one, and returns ErrOutdated where that is more than this node knows of
// itself. Otherwise it returns the last entry that they have seen it acknowledge.
// It does not wait for those that are down, nor long for those that do not answer.
func (m *Member) askOthers(ctx context.Context, id consensus.ServerID, own consensus.Promises, expected []consensus.Server) (acknowledged uint64, _ error) {
	ctx, cancel := context.WithTimeout(ctx, askPatience)
	defer cancel()
	missing := make(map[string]bool) // of whom nothing has come yet, not even an error
	for _, s := range expected {
		missing[s.ID.Name()] = s.ID.Name() != id.Name()
	}
	type answer struct {
		name   string
		health peer.Health
		err    error
	}
	answers := make(chan answer)
	asked := make(map[string]bool)
	defer func() { // they end with ctx
		cancel()
		for range asked {
			<-answers
		}
	}()
	tick := time.NewTicker(askPause)
	defer tick.Stop()
	for {
		for _, s := range m.directory.Sightings() {
			if s.Name == id.Name() || asked[s.Name] || s.Address == "" {
				continue
			}
			if _, done := missing[s.Name]; done && !missing[s.Name] {
				continue
			}
			asked[s.Name], missing[s.Name] = true, true
			go func() {
				h, err := m.peers.Health(ctx, s.Name, peer.Inquiry{ServerID: string(id), Brief: true})
				answers <- answer{s.Name, h, err}
			}()
		}
		if !anyTrue(missing) {
			return acknowledged, nil
		}
		select {
		case a := <-answers:
			delete(asked, a.name)
			missing[a.name] = false
			if a.err != nil {
				m.log.Debug("not told what is known of this node", "by", a.name, "cause", a.err)
				continue
			}
			s := a.health.Seen
			if err := own.Outdated(consensus.Promises{Start: s.Start, Term: s.Term, VoteTerm: s.VoteTerm, Index: s.Index}); a.health.SeenOK && err != nil {
				return 0, fmt.Errorf("%s says: %w", a.name, err)
			}
			acknowledged = max(acknowledged, s.Index)
		case <-tick.C:
		case <-ctx.Done():
			return acknowledged, nil
		}
	}
}

func anyTrue(of map[string]bool) bool {
	for _, b := range of {
		if b {
			return true
		}
	}
	return false
}

// recordEvery is how often a node looks whether its start can be recorded.
const recordEvery = time.Second

// recordStart has this start committed, as soon as every server can apply the
// command: a node that cannot would stop at it.
func (m *Member) recordStart(ctx context.Context, number uint64) {
	id := m.node.ID()
	tick := time.NewTicker(recordEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if !m.current.Load() {
			continue
		}
		known, _ := m.starts.Known(id)
		if known > number {
			m.starts.ReportOutdated(fmt.Errorf("start %d, and the cluster knows of start %d", number, known))
			return
		}
		if m.View().Start(fsm.ServerID(id)) == number {
			return
		}
		if !m.Understood(fsm.RecordStart{}) {
			continue
		}
		bounded, cancel := context.WithTimeout(ctx, attemptTimeout)
		result, err := m.Do(bounded, fsm.RecordStart{Server: fsm.ServerID(id), Number: number})
		cancel()
		if err == nil && result.Verdict == fsm.Refused {
			m.starts.ReportOutdated(fmt.Errorf("start %d: %s", number, result.Text))
			return
		}
	}
}

// Understood reports whether every server of the configuration has said that it
// can apply commands of that kind. Where one of its version is in the log already,
// all can.
func (m *Member) Understood(a fsm.Action) bool {
	if v := fsm.VersionOf(a); v <= 1 || v <= m.View().CommandVersion() {
		return true
	}
	return m.roll.understand(a, m.node.ID(), m.node.Servers())
}

// understand reports whether all servers but self have said so.
func (r *roll) understand(a fsm.Action, self consensus.ServerID, servers []consensus.Server) bool {
	for _, s := range servers {
		if s.ID == self {
			continue
		}
		if said, ok := r.of(s.ID); !ok || said.CommandVersion < fsm.VersionOf(a) {
			return false
		}
	}
	return len(servers) > 0
}

// outdatedError is why a member fails whose data directory is an old copy.
func (s *Starts) outdatedError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return consensus.Outdated(s.why)
}
