package delivery

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm"
)

const (
	// dialTimeout is for one address; a host that drops packets is not waited for
	// as long as one that speaks slowly.
	dialTimeout = 30 * time.Second
	// connectTimeout is for all hops of one attempt.
	connectTimeout = 15 * time.Minute
)

// connect tries the domain's hops, best first, until one has completed EHLO as
// the domain's TLS policy wants it. Its error is a barredError where none has, and one
// has answered.
func (h *hop) connect(ctx context.Context, d fsm.Domain, dial time.Duration) (*smtpclient.Conn, route.Hop, error) {
	hops, err := h.a.c.Router.Route(ctx, d)
	if err != nil {
		return nil, route.Hop{}, fmt.Errorf("route: %w", err)
	}
	var trouble error
	var refused *tlspolicy.Failure
	var unwelcome *smtpclient.StageError
	for _, at := range hops {
		conn, odd, err := h.reach(ctx, d, at, dial)
		if err == nil {
			h.a.stats.Connections.Add(1)
			h.a.c.TLSAlarm(h.name, odd)
			h.a.awaited.forget(h)
			h.welcomed()
			return conn, at, nil
		}
		errors.As(err, &refused)
		if e := refusesUs(err); e != nil {
			unwelcome = e
		}
		trouble = errors.Join(trouble, fmt.Errorf("%s: %w", at, err))
		if ctx.Err() != nil {
			break
		}
	}
	if refused != nil {
		h.a.c.TLSAlarm(h.name, refused)
	}
	if unwelcome != nil {
		trouble = &barredError{unwelcome, trouble}
	}
	h.a.stats.ConnectFailed.Add(1)
	h.a.awaited.expect(h, hops)
	return nil, route.Hop{}, trouble
}

// open dials and begins a conversation, with TLS where it is offered and config
// is not nil.
func (h *hop) open(ctx context.Context, at route.Hop, dial time.Duration, config *tls.Config) (*smtpclient.Conn, error) {
	dialing, cancel := context.WithTimeout(ctx, dial)
	nc, err := h.a.c.Dial(dialing, "tcp", at.Address.String())
	cancel()
	if err != nil {
		return nil, &smtpclient.StageError{Stage: smtpclient.StageConnect, Err: err}
	}
	return smtpclient.Open(ctx, nc, smtpclient.Options{Hello: h.a.c.Hostname, TLS: config, Timeouts: h.a.c.Timeouts})
}
