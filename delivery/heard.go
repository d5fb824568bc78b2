package delivery

import (
	"net/netip"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// heardSpacing is the least time between two probes of a next hop that was heard: it
// may well connect to us again and again, and take nothing itself.
const heardSpacing = 2 * time.Second

// An awaited knows at which addresses the next hops are that this node could not reach.
// The zero value is ready to use.
//
// Invariant: at and of have the same pairs. There are no more than hops, times the
// addresses that a route has at most.
type awaited struct {
	mu sync.Mutex
	at map[netip.Addr]map[mail.Domain]*hop
	of map[mail.Domain][]netip.Addr
}

// expect notes that a next hop was not reached at any of these.
func (a *awaited) expect(h *hop, hops []route.Hop) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetLocked(h)
	for _, one := range hops {
		address := one.Address.Addr().Unmap()
		if a.at == nil {
			a.at, a.of = make(map[netip.Addr]map[mail.Domain]*hop), make(map[mail.Domain][]netip.Addr)
		}
		if a.at[address] == nil {
			a.at[address] = make(map[mail.Domain]*hop)
		}
		if a.at[address][h.name] == nil {
			a.at[address][h.name] = h
			a.of[h.name] = append(a.of[h.name], address)
		}
	}
}

// forget takes it back.
func (a *awaited) forget(h *hop) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.forgetLocked(h)
}

func (a *awaited) forgetLocked(h *hop) {
	for _, address := range a.of[h.name] {
		if delete(a.at[address], h.name); len(a.at[address]) == 0 {
			delete(a.at, address)
		}
	}
	delete(a.of, h.name)
}

// Heard says that a host has connected to this node. If it is a next hop that is down,
// it runs again, whatever it wants of us, and is probed now and not when its turn comes.
// Heard does not block, and is safe for concurrent use.
func (a *Agent) Heard(from netip.Addr) {
	a.awaited.mu.Lock()
	defer a.awaited.mu.Unlock()
	for _, h := range a.awaited.at[from.Unmap()] {
		h.heard()
	}
}

func (h *hop) heard() {
	h.mu.Lock()
	now := time.Now()
	due := h.down && now.Sub(h.heardAt) >= heardSpacing
	if due {
		h.heardAt, h.unprobed = now, true
	}
	h.mu.Unlock()
	if due {
		h.poke()
	}
}
