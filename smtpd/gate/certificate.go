package gate

import (
	"crypto/tls"
	"net/netip"
	"sync"
	"time"
)

// asking returns a configuration that asks clients for a certificate. None need have
// one, and none is verified: who is known by its key is somebody else's to say. What
// still can fail is a handshake with a certificate that cannot be read, or whose key is
// of a kind that we do not know, and with the rare client that gives up when it is
// asked; Gate.asks spares these.
func asking(c *tls.Config) *tls.Config {
	if c == nil {
		return nil
	}
	c = c.Clone()
	c.ClientAuth = tls.RequestClientCert
	return c
}

// asks reports whether a client is to be asked for a certificate.
func (g *Gate) asks(client netip.Addr) bool {
	return g.config.AskCertificate != nil && g.config.AskCertificate() && !g.spared.has(g.groupOf(client))
}

const (
	// sparedTime is for how long a client is not asked for a certificate any more with
	// which a handshake failed when it was asked: mail must not wait for a certificate
	// that nobody needs.
	sparedTime = time.Hour
	// sparedMax bounds how many clients are remembered; the one that would be forgotten
	// first gives way.
	sparedMax = 4096
)

// spared are the clients that are not asked for a certificate.
type spared struct {
	now  func() time.Time
	mu   sync.Mutex
	till map[netip.Prefix]time.Time
}

func newSpared(now func() time.Time) spared {
	return spared{now: now, till: make(map[netip.Prefix]time.Time)}
}

func (s *spared) add(client netip.Prefix) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if _, known := s.till[client]; !known && len(s.till) >= sparedMax {
		var first netip.Prefix
		for c, till := range s.till {
			if t, ok := s.till[first]; !ok || till.Before(t) {
				first = c
			}
		}
		delete(s.till, first)
	}
	s.till[client] = now.Add(sparedTime)
}

func (s *spared) has(client netip.Prefix) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	till, ok := s.till[client]
	if ok && !s.now().Before(till) {
		delete(s.till, client)
		return false
	}
	return ok
}
