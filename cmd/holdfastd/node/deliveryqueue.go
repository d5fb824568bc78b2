package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cluster/dispatch"
	"github.com/holdfast-mx/holdfast/delivery"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// deliveryQueue is the member as the delivery agent sees it.
type deliveryQueue struct {
	m   *cluster.Member
	log *slog.Logger
	// barred reports whether a domain's primary refuses this node's connections, as it
	// said last.
	barred func(mail.Domain) bool
}

func (q deliveryQueue) Work() []delivery.Work {
	view := q.m.View()
	rank, nodes := q.m.Rank()
	var works []delivery.Work
	for _, d := range view.Destinations() {
		w := workFor(view, d)
		if w.Due == 0 && view.Counts(d.Name).Leased == 0 && w.NextHop.State == fsm.NextHopUp && !q.barred(d.Name) {
			continue
		}
		w.Rank, w.Nodes = rank, nodes
		works = append(works, w)
	}
	return works
}

func (q deliveryQueue) WorkFor(n mail.Domain) (delivery.Work, bool) {
	view := q.m.View()
	d, ok := view.Domain(n)
	if !ok {
		return delivery.Work{}, false
	}
	w := workFor(view, d)
	w.Rank, w.Nodes = q.m.Rank()
	return w, !w.NextHop.Stopped
}

// workFor is the work for a domain, without who shares it.
func workFor(view *fsm.State, d fsm.Domain) delivery.Work {
	w := delivery.Work{Domain: d, NextHop: view.NextHop(d.Name), Due: view.Counts(d.Name).Due}
	if w.NextHop.Stopped {
		w.Due = 0 // until an administrator has it go on
	}
	return w
}

func (q deliveryQueue) Changed() <-chan struct{} { return q.m.Changed() }

func (q deliveryQueue) Pull(ctx context.Context, w delivery.Wish) (delivery.Lease, error) {
	granted, err := q.m.Pull(ctx, cluster.Wish{
		Domain: w.Domain, Max: w.Max, Connections: w.Connections,
		Seen: dispatch.Feedback{Token: w.Seen.Token, Answered: w.Seen.Answered, Deferred: w.Seen.Deferred, Lost: w.Seen.Lost, Mean: w.Seen.Mean},
	})
	if err != nil {
		return delivery.Lease{}, err
	}
	lease := delivery.Lease{Token: granted.Token, Connections: granted.Connections}
	for _, m := range granted.Messages {
		msg := delivery.Message{ID: m.ID, Envelope: m.Envelope, Body: m.Body, Recipients: m.Queued(w.Domain)}
		if len(msg.Recipients) > 0 {
			lease.Messages = append(lease.Messages, msg)
		}
	}
	return lease, nil
}

func (q deliveryQueue) Renew(ctx context.Context, token fsm.Token, request fsm.RequestID, begun []mail.QueueID) ([]mail.QueueID, error) {
	result, err := q.m.Do(ctx, fsm.RenewLeases{Holder: q.m.Name(), Token: token, Request: request, Begun: begun})
	if err != nil {
		return nil, err
	}
	switch result.Verdict {
	case fsm.Done:
		return result.Messages, nil
	case fsm.NotFound:
		return nil, delivery.ErrLeaseEnded
	}
	return nil, fmt.Errorf("renewal refused: %s", result.Text)
}

func (q deliveryQueue) Report(ctx context.Context, token fsm.Token, outcomes []fsm.MessageOutcomes) error {
	result, err := q.m.Do(ctx, fsm.RecordOutcomes{Holder: q.m.Name(), Token: token, Messages: outcomes})
	if err == nil && result.Verdict == fsm.Invalid {
		// Asking again would not help, and would never end. The lease ends by
		// expiry, and what was begun is marked.
		q.log.Error("report refused", "token", token, "cause", result.Text)
		return nil
	}
	return err
}

func (q deliveryQueue) ReportNextHop(ctx context.Context, domain mail.Domain, saw delivery.Sight, detail string) error {
	r := fsm.ReportNextHop{Node: q.m.Name(), Domain: domain, Up: saw == delivery.Reached, Refused: saw == delivery.Barred, Detail: detail}
	if !q.m.Understood(r) {
		r.Refused = false // To older servers, who is refused has just failed.
	}
	_, err := q.m.Do(ctx, r)
	return err
}

func (q deliveryQueue) OpenBody(ctx context.Context, ref mail.BodyRef) (io.ReadSeekCloser, error) {
	return q.m.OpenBody(ctx, ref)
}

// self tells the router by what the cluster's members are recognised, so that
// mail is never sent round in a circle.
func (n *Node) self() route.Self {
	var s route.Self
	for _, m := range n.directory.Mailhosts() {
		s.Names = append(s.Names, m.Hostname)
		for _, text := range m.SMTP {
			at, err := endpoint(text)
			if err != nil {
				n.log.Warn("a member's SMTP address cannot be read", "member", m.Hostname, "address", text, "cause", err)
				continue
			}
			s.Endpoints = append(s.Endpoints, at)
			s.Addresses = append(s.Addresses, at.Addr())
		}
	}
	return s
}

func endpoint(text string) (netip.AddrPort, error) {
	at, err := netip.ParseAddrPort(text)
	if err == nil {
		return netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), nil
	}
	if _, _, err := net.SplitHostPort(text); err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPort{}, errors.New("want an IP address and a port")
}
