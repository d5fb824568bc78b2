package cluster

import (
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
)

// A Condition is how one node is: this one now, or another one when it last
// said.
type Condition struct {
	peer.Health
	// At is when it said so; zero where it never did.
	At time.Time
	// Err is why it did not say so when it was last asked.
	Err error
	// Complete says that it holds every live body, of the messages that this node
	// had applied a few seconds ago.
	Complete bool
}

// Conditions are those of the other nodes, for people to see: roll is what the
// cluster itself goes by. The zero value is ready.
type conditions struct {
	mu     sync.Mutex
	others map[string]Condition
	// asOf is what this node had applied when each was asked last.
	asOf map[string]fsm.Index
}

// asking notes that a node is asked now, when this one has applied that much. It
// returns how much that was when it was asked before, or is now: what a node has
// to have applied to be complete.
func (c *conditions) asking(name string, applied fsm.Index) fsm.Index {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asOf == nil {
		c.asOf, c.others = map[string]fsm.Index{}, map[string]Condition{}
	}
	before, again := c.asOf[name]
	c.asOf[name] = applied
	if !again {
		return applied
	}
	return before
}

// note takes in what a node said, or why it did not. Who has applied the entry
// at index and lacks nothing is complete.
func (c *conditions) note(name string, h peer.Health, err error, index fsm.Index) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		last := c.others[name]
		c.others[name] = Condition{Health: last.Health, At: last.At, Err: err}
		return
	}
	c.others[name] = Condition{Health: h, At: time.Now(), Complete: lacksNothing(h, index)}
}

// keep forgets all other names.
func (c *conditions) keep(names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	gone := func(name string) bool { return !slices.Contains(names, name) }
	for name := range c.asOf {
		if gone(name) {
			delete(c.asOf, name)
			delete(c.others, name)
		}
	}
}

// lacksNothing reports whether a node that is as h says holds every body that was
// live at index.
func lacksNothing(h peer.Health, index fsm.Index) bool {
	return h.Hydration.Known && h.Hydration.Missing == 0 && fsm.Index(h.Applied) >= index
}

// list returns what the others said last, by name.
func (c *conditions) list() map[string]Condition {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := make(map[string]Condition, len(c.others))
	for name, one := range c.others {
		all[name] = one
	}
	return all
}

// Conditions returns how every node is, by name: this one now, the others as
// they said last.
func (m *Member) Conditions() map[string]Condition {
	all := m.conditions.list()
	at, hydration := m.hydrator.Report()
	term, leads := m.node.Reign()
	all[string(m.name)] = Condition{
		Health: peer.Health{
			ServerID: string(m.node.ID()), Applied: uint64(at), Leader: leads, Term: term,
			Hydration: hydration, Scrub: m.scrubber.Report(),
		},
		At: time.Now(), Complete: hydration.Known && hydration.Missing == 0,
	}
	return all
}

// Complete returns the names of the servers that hold every live body, by what
// is known of them: no live body lies in fewer spools. It is what was so a few
// seconds ago; of messages accepted since, a majority of the voters holds the
// body.
func (m *Member) Complete() []string {
	conditions := m.Conditions()
	return slices.DeleteFunc(m.servers(), func(name string) bool {
		c := conditions[name]
		return !c.Complete || c.Err != nil
	})
}
