package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/holdfast-mx/holdfast/cluster/transport"
)

// Status is what gossip believes of a member.
type Status int

// The statuses. A member that is only suspected counts as alive.
const (
	Alive Status = iota + 1
	Dead         // it does not answer
	Left         // it said goodbye
)

// String returns the word for people.
func (s Status) String() string {
	switch s {
	case Alive:
		return "alive"
	case Dead:
		return "dead"
	case Left:
		return "left"
	}
	return "unknown"
}

// A Member is one node as gossip knows it.
type Member struct {
	Name       string
	Status     Status
	GossipAddr string // IP:port
	Meta
}

// ServerID returns <name>/<incarnation>.
func (m Member) ServerID() transport.ServerID {
	return transport.ServerID(m.Name + "/" + m.Incarnation)
}

// membersMax bounds the members that are listed and remembered, ourselves not
// counted. A cluster has three to nine.
const membersMax = 64

// conflictQuiet is how long a name held by two nodes is not logged again.
const conflictQuiet = time.Minute

// A roster is the list of members. It is what memberlist reports to, under
// memberlist's own lock: so its methods take what they need and return, and
// never call memberlist.
type roster struct {
	self    string
	log     *slog.Logger
	changed chan struct{} // capacity 1
	// remember asks for the peers file to be written.
	remember chan struct{} // capacity 1

	mu sync.Mutex
	// members has everybody but ourselves.
	//
	// Invariant: at most membersMax.
	members map[string]Member
	// seen orders members by when they last were alive, oldest first.
	seen       []string
	meta       Meta
	encoded    []byte // Invariant: meta encoded; at most MetaBytesMax.
	conflicted time.Time
}

func newRoster(self string, meta Meta, log *slog.Logger) (*roster, error) {
	encoded, err := meta.encode()
	if err != nil {
		return nil, err
	}
	return &roster{
		self: self, log: log, meta: meta, encoded: encoded, members: make(map[string]Member),
		changed: make(chan struct{}, 1), remember: make(chan struct{}, 1),
	}, nil
}

// list returns the others, sorted by name.
func (r *roster) list() []Member {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]Member, 0, len(r.members)+1)
	for _, m := range r.members {
		list = append(list, m)
	}
	slices.SortFunc(list, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (r *roster) get(name string) (Member, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m, ok := r.members[name]
	return m, ok
}

// put lists a member. Over the limit the one that has been gone longest is
// dropped.
func (r *roster) put(m Member) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.members[m.Name] = m
	r.seen = append(slices.DeleteFunc(r.seen, func(n string) bool { return n == m.Name }), m.Name)
	if len(r.members) > membersMax {
		for i, name := range r.seen {
			if r.members[name].Status != Alive {
				delete(r.members, name)
				r.seen = slices.Delete(r.seen, i, i+1)
				break
			}
		}
	}
	r.notify()
}

func (r *roster) notify() {
	poke(r.changed)
	poke(r.remember)
}

// poke sends unless a signal is waiting already.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// setMeta changes what we say of ourselves. It reports whether anything changed.
func (r *roster) setMeta(change func(*Meta)) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := r.meta
	m.SMTP = slices.Clone(m.SMTP)
	change(&m)
	encoded, err := m.encode()
	if err != nil {
		return false, err
	}
	if string(encoded) == string(r.encoded) {
		return false, nil
	}
	r.meta, r.encoded = m, encoded
	poke(r.changed)
	return true, nil
}

// others tells whether anybody else is alive.
func (r *roster) others() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, m := range r.members {
		if m.Status == Alive {
			return true
		}
	}
	return false
}

// NotifyAlive implements memberlist.AliveDelegate: an error keeps a member out,
// for a malformed name as well as for what it says of itself.
func (r *roster) NotifyAlive(n *memberlist.Node) error {
	if n.Name == r.self {
		return nil
	}
	if _, err := memberOf(n, Alive); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if m, known := r.members[n.Name]; known && m.Status == Alive {
		return nil
	}
	alive := 0
	for _, m := range r.members {
		if m.Status == Alive {
			alive++
		}
	}
	if alive >= membersMax {
		return errors.New("too many members")
	}
	return nil
}

// NotifyJoin implements memberlist.EventDelegate.
func (r *roster) NotifyJoin(n *memberlist.Node) { r.report(n, Alive) }

// NotifyUpdate implements memberlist.EventDelegate.
func (r *roster) NotifyUpdate(n *memberlist.Node) { r.report(n, Alive) }

// NotifyLeave implements memberlist.EventDelegate, for the failed and for those
// that left.
func (r *roster) NotifyLeave(n *memberlist.Node) { r.report(n, Dead) }

func (r *roster) report(n *memberlist.Node, status Status) {
	if n.Name == r.self {
		return
	}
	m, err := memberOf(n, status)
	if err != nil { // NotifyAlive has refused such a member.
		r.log.Warn("member not understood", "member", n.Name, "cause", err)
		return
	}
	if status == Dead && m.leaving {
		m.Status = Left
	}
	level := slog.LevelDebug
	if old, known := r.get(m.Name); !known || old.Status != m.Status || old.Incarnation != m.Incarnation {
		level = slog.LevelInfo
	}
	r.log.Log(context.Background(), level, "member seen",
		"member", m.Name, "status", m.Status.String(), "incarnation", m.Incarnation, "gossip_addr", m.GossipAddr)
	r.put(m)
}

// memberOf copies what memberlist owns.
func memberOf(n *memberlist.Node, status Status) (Member, error) {
	meta, err := decodeMeta(n.Meta)
	if err != nil {
		return Member{}, err
	}
	m := Member{Name: n.Name, Status: status, GossipAddr: net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(n.Port))), Meta: meta}
	if err := m.ServerID().Check(); err != nil {
		return Member{}, fmt.Errorf("%w: %w", ErrMeta, err)
	}
	return m, nil
}

// NotifyConflict implements memberlist.ConflictDelegate: two nodes claim one
// name. One of them was set up with the other's certificate and configuration.
func (r *roster) NotifyConflict(existing, other *memberlist.Node) {
	r.mu.Lock()
	quiet := !r.conflicted.IsZero() && time.Since(r.conflicted) < conflictQuiet
	if !quiet {
		r.conflicted = time.Now()
	}
	r.mu.Unlock()
	if !quiet {
		r.log.Error("two nodes claim one name: give each its own certificate and configuration",
			"member", existing.Name, "at", existing.Address(), "and_at", other.Address())
	}
}

// NodeMeta implements memberlist.Delegate.
func (r *roster) NodeMeta(limit int) []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.encoded) > limit { // memberlist's limit is our own.
		return nil
	}
	return r.encoded
}

// The rest of memberlist.Delegate: we gossip nothing but Meta.

// NotifyMsg implements memberlist.Delegate.
func (r *roster) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (r *roster) GetBroadcasts(_, _ int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (r *roster) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (r *roster) MergeRemoteState([]byte, bool) {}
