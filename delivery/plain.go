package delivery

import (
	"net/netip"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm"
)

const (
	// plainTime is how long a next hop that seems not to take commands behind a
	// final dot is spared them. A false alarm costs a round trip per message, a
	// true one a connection each time that it is over.
	plainTime = time.Hour
	// plainMax bounds how many addresses are remembered; the one that would be
	// forgotten first gives way.
	plainMax = 256
)

// plainHops are the addresses that are spoken to without pipelining across
// messages. The zero value has none.
type plainHops struct {
	mu   sync.Mutex
	till map[netip.AddrPort]time.Time
}

func (p *plainHops) add(at netip.AddrPort, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.till == nil {
		p.till = make(map[netip.AddrPort]time.Time)
	}
	if _, known := p.till[at]; !known && len(p.till) >= plainMax {
		var first netip.AddrPort
		for a, till := range p.till {
			if t, ok := p.till[first]; !ok || till.Before(t) {
				first = a
			}
		}
		delete(p.till, first)
	}
	p.till[at] = now.Add(plainTime)
}

func (p *plainHops) has(at netip.AddrPort, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	till, ok := p.till[at]
	if ok && !now.Before(till) {
		delete(p.till, at)
		return false
	}
	return ok
}

// pipelines reports whether a message may be begun behind the dot of another. Where the
// next hop is told whose each is, that comes between them.
func (h *hop) pipelines(conn *smtpclient.Conn, at route.Hop, d fsm.Domain) bool {
	return conn.Offers("PIPELINING") && !speaksFor(conn, d) && !h.a.plain.has(at.Address, time.Now())
}

// pipelined takes note when that went wrong, so that no other connection, and
// not the next one, goes the same way.
func (h *hop) pipelined(conn *smtpclient.Conn, at route.Hop) {
	if !conn.PipeliningFailed() || h.a.plain.has(at.Address, time.Now()) {
		return
	}
	h.a.plain.add(at.Address, time.Now())
	h.a.stats.PipeliningFailed.Add(1)
	h.a.c.Log.Warn("connection ended on what was pipelined behind a final dot, going on without for a while", "domain", h.name, "hop", at.String(), "for", plainTime.String())
}
