package sim

import (
	"net"
	"sync"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
	"github.com/holdfast-mx/holdfast/fsm"
)

// A registry stands in for gossip: what every process announces, all that can
// reach it may read.
type registry struct {
	mu      sync.Mutex
	reaches func(a, b string) bool
	entries map[string]cluster.Sighting
	changed chan struct{}
}

func newRegistry(reaches func(a, b string) bool) *registry {
	return &registry{reaches: reaches, entries: map[string]cluster.Sighting{}, changed: make(chan struct{})}
}

func (r *registry) put(s cluster.Sighting) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.entries[s.Name] == s {
		return
	}
	r.entries[s.Name] = s
	close(r.changed)
	r.changed = make(chan struct{})
}

// A directory is one process's view of the registry.
type directory struct {
	registry *registry
	names    []string // of all nodes
	self     cluster.Sighting
}

func (d *directory) Sightings() []cluster.Sighting {
	d.registry.mu.Lock()
	defer d.registry.mu.Unlock()
	var all []cluster.Sighting
	for name, s := range d.registry.entries {
		s.Alive = s.Alive && (name == d.self.Name || d.registry.reaches(d.self.Name, name))
		all = append(all, s)
	}
	return all
}

func (d *directory) Announce(hasState bool, sees string) {
	d.self.HasState, d.self.Sees, d.self.Alive = hasState, sees, true
	d.registry.put(d.self)
}

func (d *directory) Changed() <-chan struct{} {
	d.registry.mu.Lock()
	defer d.registry.mu.Unlock()
	return d.registry.changed
}

func (d *directory) Address(name string) (string, bool) {
	return net.JoinHostPort(name, clusterPort), true
}

func (d *directory) Mailhosts() []node.Mailhost {
	var all []node.Mailhost
	for _, name := range d.names {
		all = append(all, node.Mailhost{Hostname: name + ".backup.test"})
	}
	return all
}

func (d *directory) Members() []admin.Member {
	var all []admin.Member
	for _, s := range d.Sightings() {
		all = append(all, admin.Member{Name: fsm.NodeName(s.Name), ServerID: s.Name + "/" + s.Incarnation, ClusterAddress: s.Address, HasState: s.HasState})
	}
	return all
}

func (d *directory) Close() error { return nil }
