package sim

import (
	"fmt"
	"sync"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// homeName is the host that takes the sender's own mail, reports among it.
	homeName = "sender.test"
	// refusedEvery is how often a letter has recipients that the primary refuses for
	// good, in a world whose senders are told.
	refusedEvery = 4
)

// toldDomain is the relay domain of which they are told.
var toldDomain = relayDomains[0]

// zeroID is before all queue ids.
var zeroID mail.QueueID

// A home is the senders' host of a world. It notes in the ledger whom a report tells of
// what.
type home struct {
	world  *World
	faults *sink.Faults
	// arriving, if not nil, is told of each report, before the host says that it took
	// it.
	arriving func(ledger.Arrival)

	server *sink.Server // nil while it is down

	mu      sync.Mutex
	strange []error // what arrived and was no report
}

// Tell makes this a world in which the senders of one relay domain are told what its
// primary refuses for good, and in which there is such mail. It is for worlds without
// nodes yet.
func (w *World) Tell(arriving func(ledger.Arrival)) error {
	w.home = &home{world: w, faults: sink.NewFaults(w.seed), arriving: arriving}
	w.zone = zone{homeName: w.network.Host(homeName).IP()}
	w.ledger.Tell(string(toldDomain))
	return w.home.up()
}

// up starts the host.
func (h *home) up() error {
	if h.server != nil {
		return nil
	}
	l, err := h.world.network.Host(homeName).Listen(25)
	if err != nil {
		return err
	}
	h.server = sink.Start(l, sink.Options{Hostname: homeName, Faults: h.faults, Message: h.told, Arrival: func(a ledger.Arrival) error {
		if h.arriving != nil {
			h.arriving(a)
		}
		return nil
	}})
	return nil
}

// down ends it.
func (h *home) down() {
	if h.server == nil {
		return
	}
	h.server.Close()
	h.server = nil
}

// told notes a report.
func (h *home) told(m sink.Message) error {
	notices, err := m.Notices()
	if err != nil {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.strange = append(h.strange, err)
		return nil
	}
	for _, n := range notices {
		if err := h.world.ledger.Notice(n); err != nil {
			return err
		}
	}
	return nil
}

// strangers returns what arrived and was no report.
func (h *home) strangers() []error {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.strange
}

// refusedEvery is how often a letter of this world has recipients that the primary
// refuses for good; 0 for never.
func (w *World) refusedEvery() int {
	if w.home == nil {
		return 0
	}
	return refusedEvery
}

// stays reports whether a recipient that is held stays so: the primary has no such
// mailbox, and nobody is to be told.
func (w *World) stays(recipient string) bool {
	return letter.IsRefused(recipient) && w.ledger.Refused(recipient) && !w.ledger.Due(recipient)
}

// wanted reports whether an operator releases a message: something is held that can
// still be delivered, or of which a sender is still to be told and was not, since it was
// refused while nothing was known of the primary. While a report is owed it is left
// alone. An error says what is held for no reason that the primary gave, and would be for
// ever where no operator looks.
func (w *World) wanted(m fsm.Message) (bool, error) {
	wanted, owing := false, false
	for i, r := range m.Recipients {
		owing = owing || r.Report != 0
		to := m.Envelope.Recipients[i].Path.Mailbox.String()
		if r.State != fsm.RecipientHeld || r.Report != 0 || w.stays(to) {
			continue
		}
		switch {
		case w.refusals.of(to) == 0:
			return false, fmt.Errorf("%s: <%s> is held, and nobody refused it: %s", m.ID, to, r.Reason)
		case w.ledger.Due(to) && r.Reason != fsm.ReasonUnproven:
			return false, fmt.Errorf("%s: <%s> is held, and its sender is owed no report: %s", m.ID, to, r.Reason)
		}
		wanted = true
	}
	return wanted && !owing, nil
}

// rests reports whether what is left of a message is held, and stays so.
func (w *World) rests(m fsm.Message) bool {
	held := false
	for i, r := range m.Recipients {
		if r.State == fsm.RecipientQueued || r.Report != 0 {
			return false
		}
		if r.State == fsm.RecipientHeld {
			if !w.stays(m.Envelope.Recipients[i].Path.Mailbox.String()) {
				return false
			}
			held = true
		}
	}
	return held
}

// quiet reports whether all nodes run, and have nothing in their queues but what rests.
func (w *World) quiet() bool {
	for _, name := range w.names {
		p := w.nodes[name]
		if p == nil {
			return false
		}
		view := p.node.Member().View()
		live := view.Totals().Live
		if len(view.Destinations()) != len(relayDomains) {
			return false
		}
		if live == 0 {
			continue
		}
		for m := range view.Messages(zeroID) {
			if w.rests(m) {
				live--
			}
		}
		if live != 0 {
			return false
		}
	}
	return true
}
