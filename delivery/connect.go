package delivery

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm"
)

const (
	// dialTimeout is for one address; a host that drops packets is not waited for
	// as long as one that speaks slowly.
	dialTimeout = 30 * time.Second
	// connectTimeout is for all hops of one attempt.
	connectTimeout = 15 * time.Minute
)

// connect tries the domain's hops, best first, until one has completed EHLO.
func (h *hop) connect(ctx context.Context, d fsm.Domain, dial time.Duration) (*smtpclient.Conn, route.Hop, error) {
	hops, err := h.a.c.Router.Route(ctx, d)
	if err != nil {
		return nil, route.Hop{}, fmt.Errorf("route: %w", err)
	}
	var trouble error
	for _, at := range hops {
		conn, err := h.open(ctx, at, dial, true)
		if errors.Is(err, smtpclient.ErrTLS) && ctx.Err() == nil {
			// Opportunistic: not verified, and better in the clear than not at all.
			h.a.stats.TLSFallbacks.Add(1)
			h.a.c.Log.Warn("TLS failed, going on without", "domain", h.name, "hop", at.String(), "error", err)
			conn, err = h.open(ctx, at, dial, false)
		}
		if err == nil {
			h.a.stats.Connections.Add(1)
			return conn, at, nil
		}
		trouble = errors.Join(trouble, fmt.Errorf("%s: %w", at, err))
		if ctx.Err() != nil {
			break
		}
	}
	h.a.stats.ConnectFailed.Add(1)
	return nil, route.Hop{}, trouble
}

func (h *hop) open(ctx context.Context, at route.Hop, dial time.Duration, withTLS bool) (*smtpclient.Conn, error) {
	dialing, cancel := context.WithTimeout(ctx, dial)
	nc, err := h.a.c.Dial(dialing, "tcp", at.Address.String())
	cancel()
	if err != nil {
		return nil, &smtpclient.StageError{Stage: smtpclient.StageConnect, Err: err}
	}
	o := smtpclient.Options{Hello: h.a.c.Hostname, Timeouts: h.a.c.Timeouts}
	if withTLS {
		o.TLS = h.a.c.TLS.Clone()
		o.TLS.ServerName = at.Host
	}
	return smtpclient.Open(ctx, nc, o)
}
