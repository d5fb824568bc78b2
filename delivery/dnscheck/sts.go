package dnscheck

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
)

// sts judges a domain's MTA-STS policy (RFC 8461).
func (c *cluster) sts(f *findings, d DomainFacts, all []mailExchanger) {
	id, err := tlspolicy.ParseSTSRecord(d.STS.Records)
	at := "_mta-sts." + string(d.Name)
	announce := Record{Name: at + ".", Type: "TXT", Data: fmt.Sprintf("\"v=STSv1; id=%s\"", c.Now.UTC().Format("20060102T150405Z"))}
	switch {
	case d.STS.RecordsErr != nil:
		f.add(Warning, CheckSTS, nil, "%s could not be looked up: %v", at, d.STS.RecordsErr)
		return
	case err != nil:
		f.add(Warning, CheckSTS, []Record{announce}, "%s is no good, and senders go on as without a policy: %v; have one record of this kind", at, err)
	case id == "" && (!d.STS.Asked || d.STS.Err != nil):
		f.add(Fine, CheckSTS, nil, "no MTA-STS policy")
		return
	case id == "":
		f.add(Warning, CheckSTS, []Record{announce}, "a policy is served, and no record at %s announces it: senders do not look for it", at)
	}
	if d.STS.Err != nil {
		f.add(Warning, CheckSTS, nil, "a policy is announced and cannot be had: %v", d.STS.Err)
		return
	}
	policy := d.STS.Policy
	if policy.Mode == tlspolicy.STSModeNone {
		f.add(Fine, CheckSTS, nil, "the policy's mode is none")
		return
	}
	level := Error
	consequence := "senders that heed the policy do not deliver there"
	if policy.Mode != tlspolicy.STSModeEnforce {
		level, consequence = Warning, "once the policy is enforced, senders that heed it will not deliver there"
	}
	before := len(*f)
	c.covered(f, d, all, level, consequence, announce)
	for _, e := range all {
		if e.node != nil && policy.Covers(e.Host) {
			c.satisfied(f, e, policy, level, consequence)
		}
	}
	f.fineUnless(before, CheckSTS, "the policy (%s) names every node, and their certificates satisfy it", policy.Mode)
}

// covered is about hosts that the policy does not name.
func (c *cluster) covered(f *findings, d DomainFacts, all []mailExchanger, level Level, consequence string, announce Record) {
	policy := d.STS.Policy
	// What is proposed names the nodes and nobody else: a policy is there to protect
	// from forged MX records, and must not be made of them.
	var ours []string
	for _, n := range c.Nodes {
		if n.Host != "" && !policy.Covers(n.Host) {
			ours = append(ours, n.Host)
		}
	}
	mended := policyText(policy, ours)
	seen := map[string]bool{} // nodes that are listed, by their host names
	for _, e := range all {
		if e.node != nil {
			seen[e.node.Host] = true
		}
		switch {
		case e.Host == "" || policy.Covers(e.Host):
		case e.node == nil:
			f.add(level, CheckSTS, nil, "the policy (%s) does not name %s: %s; name it, if it is yours", policy.Mode, e.Host, consequence)
		default:
			*f = append(*f, Finding{Level: level, Check: CheckSTS, Records: []Record{announce}, Policy: mended,
				Text: fmt.Sprintf("the policy (%s) does not name %s, as node %s is listed: %s", policy.Mode, e.Host, e.node.Name, consequence)})
		}
	}
	for _, host := range ours {
		if !seen[host] {
			*f = append(*f, Finding{Level: Warning, Check: CheckSTS, Records: []Record{announce}, Policy: mended,
				Text: fmt.Sprintf("the policy (%s) does not name %s: name it before the MX records do", policy.Mode, host)})
		}
	}
}

// policyText writes a policy, with more hosts in it.
func policyText(p tlspolicy.STSPolicy, more []string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "version: STSv1\nmode: %s\n", p.Mode)
	for _, mx := range slices.Concat(p.MX, more) {
		fmt.Fprintf(&b, "mx: %s\n", mx)
	}
	fmt.Fprintf(&b, "max_age: %d\n", p.MaxAge/time.Second)
	return b.String()
}

// satisfied is about what a node shows to those who heed the policy.
func (c *cluster) satisfied(f *findings, e mailExchanger, policy tlspolicy.STSPolicy, level Level, consequence string) {
	seen := false
	for _, p := range e.node.Ports {
		if !answers(*e.node, p) {
			continue
		}
		seen = true
		if !p.StartTLS {
			f.add(level, CheckSTS, nil, "%s does not offer STARTTLS at %s: %s", e.Host, p.Address, consequence)
			continue
		}
		if p.TLS == nil {
			f.add(level, CheckSTS, nil, "STARTTLS fails at %s: %s", p.Address, consequence)
			continue
		}
		// As if it were enforced: a policy that is tested is to be enforced one day.
		policy.Mode = tlspolicy.STSModeEnforce
		d, err := tlspolicy.Policy{Mode: tlspolicy.MTASTS}.Decide(tlspolicy.Hop{
			Host: e.Host, Now: c.Now, Roots: c.Roots, STS: tlspolicy.STS{Status: tlspolicy.STSFound, Policy: policy},
		})
		if err == nil {
			err = d.Config.VerifyConnection(*p.TLS)
		}
		if err != nil {
			f.add(level, CheckSTS, nil, "the certificate that %s shows does not satisfy the policy for %s: %s (%v)", p.Address, e.Host, consequence, cause(err))
		}
	}
	if !seen {
		f.add(Warning, CheckSTS, nil, "whether the certificate of %s satisfies the policy was not seen: the node did not answer", e.Host)
	}
}
