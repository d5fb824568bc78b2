package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"slices"

	"github.com/holdfast-mx/holdfast/delivery"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd/ondemand"
)

// calledMail is what callers call for (RFC 2645).
type calledMail struct{ n *Node }

func (m calledMail) Ready() error { return m.n.member.Ready() }

func (m calledMail) Login(ctx context.Context, user, password string) ([]mail.Domain, error) {
	return login(ctx, m.n.member.View().Domains(), user, password)
}

func (m calledMail) ByKey(key [32]byte) []mail.Domain {
	var mine []mail.Domain
	for _, d := range m.n.member.View().Domains() {
		if slices.Contains(d.Callers.Pins, key) {
			mine = append(mine, d.Name)
		}
	}
	return mine
}

// Call makes due what waits. What is in doubt still waits, and where a guard has stopped
// the delivery, there is nothing to call for.
func (m calledMail) Call(ctx context.Context, domains []mail.Domain) ([]mail.Domain, error) {
	var some []mail.Domain
	for _, d := range domains {
		view := m.n.member.View()
		counts := view.Counts(d)
		if counts.Queued == 0 || view.NextHop(d).Stopped {
			continue
		}
		if counts.Waiting > 0 && m.n.turns.due(d, m.n.seams.Now()) {
			result, err := m.n.member.Do(ctx, fsm.FlushDomain{Name: d})
			if err == nil && result.Verdict != fsm.Done {
				err = fmt.Errorf("flush: %s", result.Text)
			}
			if err != nil {
				m.n.turns.undo(d)
				return nil, err
			}
		}
		some = append(some, d)
	}
	return some, nil
}

func (m calledMail) Deliver(c ondemand.Turned, domains []mail.Domain) {
	err := m.n.agent.Answer(delivery.Call{Conn: c.Conn, TLS: c.TLS, From: c.Client, Domains: domains})
	if err != nil {
		m.n.log.Warn("called, and not spoken to", "client", c.Client, "domains", domains, "cause", err)
	}
}

// startOnDemand listens for primaries that call for their mail, where that is wanted.
func (n *Node) startOnDemand(certificate *tls.Config) error {
	if len(n.config.ATRNListen) == 0 {
		return nil
	}
	var err error
	n.ondemand, err = ondemand.New(ondemand.Config{
		Hostname: string(n.config.Hostname), Mail: calledMail{n}, TLS: certificate,
		Now: n.seams.Now, Logger: n.log.With("room", "ondemand"),
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	n.closers.add(n.ondemand.Shutdown)
	for _, address := range n.config.ATRNListen {
		l, err := n.seams.Listen(address)
		if err != nil {
			return fmt.Errorf("atrn_listen: %w", err)
		}
		n.loops.Go(func() {
			if err := n.ondemand.Serve(l); err != nil {
				n.fail(err)
			}
		})
	}
	return nil
}
