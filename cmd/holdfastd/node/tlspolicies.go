package node

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TLSPolicy reads a TLS policy.
func (a adminCluster) TLSPolicy(mode string, pins []string, authorities string, names []string) (fsm.TLSPolicy, error) {
	m, err := tlspolicy.ParseMode(mode)
	if err != nil {
		return fsm.TLSPolicy{}, err
	}
	t := fsm.TLSPolicy{Mode: fsm.TLSMode(m), Authorities: authorities, Names: names}
	for _, text := range pins {
		pin, err := tlspolicy.ParsePin(text)
		if err != nil {
			return fsm.TLSPolicy{}, err
		}
		t.Pins = append(t.Pins, pin)
	}
	return t, policyOf(t).Check()
}

// TLSReport returns what TLS the next hops showed to this node, by day.
func (a adminCluster) TLSReport() []admin.TLSDay {
	var days []admin.TLSDay
	for _, day := range a.n.tlsCounts.Days() {
		d := admin.TLSDay{Start: day.Start()}
		for _, c := range a.n.tlsCounts.Read(day) {
			p := admin.TLSPolicyCount{Domain: c.Domain, Type: string(c.Source), Succeeded: c.Succeeded, Failed: c.Failed}
			for _, f := range c.Failures {
				p.Failures = append(p.Failures, admin.TLSFailureCount{Result: string(f.Result), Host: f.Host, Sessions: f.Sessions})
			}
			d.Policies = append(d.Policies, p)
		}
		days = append(days, d)
	}
	return days
}

// policyOf is a replicated policy as those who deliver have it. Their modes have the
// same numbers.
func policyOf(t fsm.TLSPolicy) tlspolicy.Policy {
	p := tlspolicy.Policy{Mode: tlspolicy.Mode(t.Mode), CAs: t.Authorities, Names: t.Names}
	for _, pin := range t.Pins {
		p.Pins = append(p.Pins, pin)
	}
	return p
}

// tlsPolicy is the policy of a relay domain, nil where it is opportunistic.
func (n *Node) tlsPolicy(d mail.Domain) *tlspolicy.Policy {
	domain, ok := n.member.View().Domain(d)
	if !ok || domain.TLS.Mode == fsm.TLSOpportunistic {
		return nil
	}
	p := policyOf(domain.TLS)
	return &p
}

// proveEvery is how often the resolvers are proven to validate, proveAgain how soon
// where none was: the network may come later than this node.
const (
	proveEvery = time.Hour
	proveAgain = time.Minute
)

// proveResolvers finds out which resolvers validate, until ctx ends. Until one does,
// mail under DANE waits. Nobody is asked before a domain is under DANE.
func (n *Node) proveResolvers(ctx context.Context, dns *route.DNS) {
	before := ""
	for {
		wait := proveAgain
		if slices.ContainsFunc(n.member.View().Domains(), func(d fsm.Domain) bool { return d.TLS.Mode == fsm.TLSDANE }) {
			proven, err := dns.Prove(ctx, route.Proof{})
			if now := strings.Join(proven, " "); now != before {
				before = now
				n.log.Info("resolvers that validate", "resolvers", now, "others", err)
			}
			if len(proven) > 0 {
				wait = proveEvery
			}
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// tlsAlarms are the relay domains whose next hops do not show the TLS that they must,
// as this node saw it last. The zero value is ready to use.
type tlsAlarms struct {
	standing[tlspolicy.Failure]
}

// alarms returns one for each domain that still has a policy.
func (t *tlsAlarms) alarms(policy func(mail.Domain) *tlspolicy.Policy) []admin.Alarm {
	return t.standing.alarms(func(d mail.Domain) bool { return policy(d) != nil }, func(d mail.Domain, f *tlspolicy.Failure) admin.Alarm {
		return admin.Alarm{
			Name:   "tls-policy",
			Cause:  "the primary does not show the TLS that the domain's policy demands: " + f.Error(),
			Remedy: `repair its certificate or DNS; or change the policy: "holdfast domain put ` + string(d) + ` --tls MODE". Until then its mail waits.`,
		}
	})
}
