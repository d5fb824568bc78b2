package transport

import (
	"log/slog"
	"sync"
	"time"
)

// A Refusal says at which gate a connection was turned away.
type Refusal int

// The gates, in the order in which a connection meets them.
const (
	RefusedAccept     Refusal = iota // the listener itself failed
	RefusedLimit                     // too many handshakes or connections
	RefusedTLS                       // not TLS 1.3, or a certificate that is not a node's
	RefusedHello                     // a Raft connection without a proper hello
	RefusedUnaccepted                // nobody called Accept in time
	refusalKinds
)

// String returns the word for logs and metrics.
func (r Refusal) String() string {
	switch r {
	case RefusedAccept:
		return "accept"
	case RefusedLimit:
		return "limit"
	case RefusedTLS:
		return "tls"
	case RefusedHello:
		return "hello"
	case RefusedUnaccepted:
		return "unaccepted"
	}
	return "unknown"
}

// Refusals returns how many connections were turned away at each gate since
// the port was opened.
func (p *Port) Refusals() map[Refusal]uint64 {
	p.refusals.mu.Lock()
	defer p.refusals.mu.Unlock()
	counts := make(map[Refusal]uint64)
	for kind, r := range p.refusals.kinds {
		counts[Refusal(kind)] = r.count
	}
	return counts
}

// refusalQuiet is how long after a logged refusal others of its kind are only
// counted.
const refusalQuiet = time.Minute

type refusals struct {
	logger *slog.Logger
	mu     sync.Mutex
	kinds  [refusalKinds]struct {
		count  uint64
		silent uint64    // of them, since the last that was logged
		logged time.Time // when that was
	}
}

func newRefusals(logger *slog.Logger) *refusals { return &refusals{logger: logger} }

func (r *refusals) count(kind Refusal, address string, cause error) {
	r.mu.Lock()
	k := &r.kinds[kind]
	k.count++
	now := time.Now()
	if !k.logged.IsZero() && now.Sub(k.logged) < refusalQuiet {
		k.silent++
		r.mu.Unlock()
		return
	}
	silent := k.silent
	k.silent, k.logged = 0, now
	r.mu.Unlock()
	r.logger.Warn("connection between nodes refused",
		"at", kind.String(), "from", address, "cause", cause, "more_since_last", silent)
}
