package dnscheck

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/delivery/route"
)

const (
	// preferenceStep is how much worse than the primary the nodes are proposed to
	// be: there is room for another primary between.
	preferenceStep = 10
	// nodesEnough is how many nodes in the MX records are enough: most senders try
	// some five addresses, the primary's included, before they wait.
	nodesEnough = 3
	// addressesTried is how many addresses a Postfix sender tries at an attempt
	// (smtp_mx_address_limit).
	addressesTried = 5
)

// A mailExchanger is one MX record, and whose it is.
type mailExchanger struct {
	route.MX
	node *NodeFacts // nil: none of ours
}

// domain judges one relay domain.
func (c *cluster) domain(d DomainFacts) []Finding {
	var f findings
	all := c.exchangers(d)
	c.mx(&f, d, all)
	c.sts(&f, d, all)
	return f
}

// exchangers are the MX records, the best first. A record leads to a node by its
// name or by its address.
func (c *cluster) exchangers(d DomainFacts) []mailExchanger {
	var all []mailExchanger
	for _, m := range d.MX {
		e := mailExchanger{MX: m, node: c.named(m.Host)}
		for _, a := range d.Hosts[m.Host].Addresses {
			if e.node == nil {
				e.node = c.whose(a)
			}
		}
		all = append(all, e)
	}
	slices.SortStableFunc(all, func(a, b mailExchanger) int {
		if a.Preference != b.Preference {
			return int(a.Preference) - int(b.Preference)
		}
		return strings.Compare(a.Host, b.Host)
	})
	return all
}

func mxRecord(d DomainFacts, m route.MX) Record {
	return Record{Name: string(d.Name) + ".", Type: "MX", Data: fmt.Sprintf("%d %s.", m.Preference, m.Host)}
}

// hostsOf are the hosts of the nodes whose names are known.
func (c *cluster) hostsOf() []string {
	var out []string
	for _, n := range c.Nodes {
		if n.Host != "" {
			out = append(out, n.Host)
		}
	}
	return out
}

// proposal are the MX records of a domain that has none to go by.
func (c *cluster) proposal(d DomainFacts) []Record {
	var out []Record
	primaries := 0
	for _, t := range d.Targets {
		if _, err := netip.ParseAddr(t); err != nil && c.named(t) == nil {
			out = append(out, mxRecord(d, route.MX{Preference: preferenceStep, Host: t}))
			primaries++
		}
	}
	if len(d.Targets) == 0 && !d.OnDemand { // Its mail goes to the host of its own name.
		out = append(out, mxRecord(d, route.MX{Preference: preferenceStep, Host: string(d.Name)}))
	}
	for _, host := range c.hostsOf() {
		out = append(out, mxRecord(d, route.MX{Preference: 2 * preferenceStep, Host: host}))
	}
	return out
}

func (c *cluster) mx(f *findings, d DomainFacts, all []mailExchanger) {
	null := slices.ContainsFunc(all, func(e mailExchanger) bool { return e.Host == "" })
	switch {
	case errors.Is(d.MXErr, route.ErrNotFound):
		f.add(Error, CheckMX, c.proposal(d), "%s does not exist in DNS", d.Name)
		return
	case d.MXErr != nil:
		f.add(Error, CheckMX, nil, "the MX records of %s could not be looked up: %v", d.Name, d.MXErr)
		return
	case len(all) == 0:
		f.add(Error, CheckMX, c.proposal(d), "no MX records: senders go to the addresses of %s itself, and never to the cluster", d.Name)
		return
	case null && len(all) == 1:
		f.add(Error, CheckMX, append([]Record{nullMX(d, all[0])}, c.proposal(d)...), "a null MX record (RFC 7505): the domain says that it takes no mail, and senders return it")
		return
	}
	before := len(*f)
	if null {
		i := slices.IndexFunc(all, func(e mailExchanger) bool { return e.Host == "" })
		f.add(Error, CheckMX, []Record{nullMX(d, all[i])}, "a null MX record beside others (RFC 7505 section 3): some senders return mail for the domain")
		all = slices.DeleteFunc(slices.Clone(all), func(e mailExchanger) bool { return e.Host == "" })
	}
	ours := slices.DeleteFunc(slices.Clone(all), func(e mailExchanger) bool { return e.node == nil })
	if len(ours) == 0 {
		c.unlisted(f, d, all)
	} else {
		better := slices.DeleteFunc(slices.Clone(all), func(e mailExchanger) bool { return e.node != nil || e.Preference >= ours[0].Preference })
		c.listed(f, d, all, ours)
		c.ranks(f, d, all, ours, better)
		c.strangers(f, d, better)
	}
	unseen := 0
	for _, e := range all {
		h, looked := d.Hosts[e.Host]
		switch {
		case looked && e.node == nil:
			foreign(f, h, e.Host)
		case !looked && e.node == nil:
			unseen++
		}
	}
	if unseen > 0 {
		f.add(Warning, CheckMX, nil, "of %d MX records %d were not looked at: list fewer", len(all), unseen)
	}
	if len(*f) == before {
		var names []string
		for _, e := range ours {
			names = append(names, e.Host)
		}
		f.add(Fine, CheckMX, nil, "%s at %d, behind %s", strings.Join(names, ", "), ours[0].Preference, all[0].Host)
	}
}

func nullMX(d DomainFacts, e mailExchanger) Record {
	return Record{Remove: true, Name: string(d.Name) + ".", Type: "MX", Data: fmt.Sprintf("%d .", e.Preference)}
}

// unlisted is about a domain that names no node.
func (c *cluster) unlisted(f *findings, d DomainFacts, all []mailExchanger) {
	var want []Record
	preference := worse(all[0].Preference)
	for _, host := range c.hostsOf() {
		want = append(want, mxRecord(d, route.MX{Preference: preference, Host: host}))
	}
	f.add(Error, CheckMX, want, "no node is listed: senders never come to the cluster")
}

// worse is a preference for nodes behind a primary.
func worse(primary uint16) uint16 {
	if primary > 1<<16-1-preferenceStep {
		return 1<<16 - 1
	}
	return primary + preferenceStep
}

// listed is about the nodes that are not, and those that are by another name.
func (c *cluster) listed(f *findings, d DomainFacts, all, ours []mailExchanger) {
	preference := usual(ours)
	nodes := map[string]bool{}
	for _, e := range ours {
		nodes[e.node.Name] = true
	}
	for _, n := range c.Nodes {
		if nodes[n.Name] {
			continue
		}
		switch {
		case len(nodes) >= nodesEnough:
		case n.Host == "":
			f.add(Warning, CheckMX, nil, "whether node %s is listed is not known, since its host name is not", n.Name)
		default:
			f.add(Warning, CheckMX, []Record{mxRecord(d, route.MX{Preference: preference, Host: n.Host})}, "node %s is not listed", n.Name)
		}
	}
	for _, e := range ours {
		n := e.node
		if strings.EqualFold(n.Host, e.Host) {
			continue
		}
		for _, p := range n.Ports {
			if p.TLS == nil || len(p.TLS.PeerCertificates) == 0 || c.trusted(n.Host, *p.TLS) != nil {
				continue // what is wrong with it is said of the node
			}
			if err := c.trusted(e.Host, *p.TLS); err != nil {
				f.add(Warning, CheckMX, []Record{mxRecord(d, route.MX{Preference: e.Preference, Host: n.Host}), removal(mxRecord(d, e.MX))},
					"node %s is listed as %s, and its certificate is not for that name: %v", n.Name, e.Host, err)
				break
			}
		}
		if alias := d.Hosts[e.Host].Alias; alias != "" {
			f.add(Warning, CheckMX, []Record{mxRecord(d, route.MX{Preference: e.Preference, Host: n.Host}), removal(mxRecord(d, e.MX))},
				"node %s is listed as %s, which is a CNAME: an MX record must not lead to one (RFC 2181 section 10.3), and some senders do not follow it", n.Name, e.Host)
		}
	}
}

// usual is the preference that most nodes have.
func usual(ours []mailExchanger) uint16 {
	counts := map[uint16]int{}
	best := ours[0].Preference
	for _, e := range ours {
		counts[e.Preference]++
	}
	for _, e := range ours { // in order, so that ties go to the better one
		if counts[e.Preference] > counts[best] {
			best = e.Preference
		}
	}
	return best
}

// ranks is about who comes before whom.
func (c *cluster) ranks(f *findings, d DomainFacts, all, ours, better []mailExchanger) {
	first, last := ours[0].Preference, ours[len(ours)-1].Preference
	if first != last {
		wanted := usual(ours)
		for _, e := range all {
			if e.node == nil && e.Preference >= wanted {
				wanted = last // the best of them may be no better than the primary
			}
		}
		var change []Record
		for _, e := range ours {
			if e.Preference != wanted {
				change = append(change, mxRecord(d, route.MX{Preference: wanted, Host: e.Host}), removal(mxRecord(d, e.MX)))
			}
		}
		f.add(Warning, CheckMX, change, "the nodes are listed at unequal preferences, from %d to %d: senders all go to the same one", first, last)
	}
	if len(better) > 0 {
		c.crowd(f, d, better)
		return
	}
	var change []Record
	i := slices.IndexFunc(all, func(e mailExchanger) bool { return e.node == nil })
	strangers := i >= 0
	if strangers {
		best := all[i].Preference
		for _, e := range ours {
			if e.Preference <= best {
				change = append(change, mxRecord(d, route.MX{Preference: worse(best), Host: e.Host}), removal(mxRecord(d, e.MX)))
			}
		}
	}
	switch {
	case d.OnDemand: // The nodes are where mail is to come.
	case len(d.Targets) == 0:
		f.add(Error, CheckMX, change, "nothing is listed that is better than the nodes (at %d), and the MX records are to say where the mail goes: what the cluster takes it can only hold; list the primary at a better preference, or name it with \"holdfast domain put %s --to HOST\"", first, d.Name)
	case !strangers:
		f.add(Warning, CheckMX, nil, "the nodes alone are listed, and no primary: all mail comes through the cluster")
	default:
		f.add(Warning, CheckMX, change, "nothing is listed that is better than the nodes (at %d): senders come to the cluster while the primary is up", first)
	}
}

// crowd is about how many addresses come before the nodes'.
func (c *cluster) crowd(f *findings, d DomainFacts, better []mailExchanger) {
	before := 0
	for _, e := range better {
		before += len(d.Hosts[e.Host].Addresses)
	}
	if before >= addressesTried {
		f.add(Warning, CheckMX, nil, "%d addresses come before those of the nodes, and a Postfix sender tries %d at an attempt: list fewer", before, addressesTried)
	}
}

// strangers is about hosts before the nodes that are not the primary: mail stays
// there while the primary is down. Which is the primary is known where targets are
// configured, and where one of them shows in DNS.
func (c *cluster) strangers(f *findings, d DomainFacts, better []mailExchanger) {
	if len(d.Targets) == 0 || len(better) == 0 {
		return // all that are better are next hops
	}
	isTarget := func(e mailExchanger) bool {
		for _, t := range d.Targets {
			if strings.EqualFold(t, e.Host) {
				return true
			}
			for _, a := range d.Hosts[e.Host].Addresses {
				if t == a.String() || slices.Contains(d.Hosts[t].Addresses, a) {
					return true
				}
			}
		}
		return false
	}
	known := slices.ContainsFunc(better, isTarget)
	for _, e := range better {
		if known && !isTarget(e) || !known && e.Preference > better[0].Preference {
			f.add(Warning, CheckMX, nil, "%s (at %d) is neither the primary nor a node, and senders go there first", e.Host, e.Preference)
		}
	}
}

// foreign is about an MX host that is none of ours.
func foreign(f *findings, h Host, name string) {
	switch {
	case len(h.Addresses) == 0 && errors.Is(h.Err, route.ErrNotFound):
		f.add(Warning, CheckMX, nil, "%s is listed and does not exist in DNS", name)
	case len(h.Addresses) == 0 && h.Err != nil:
		f.add(Warning, CheckMX, nil, "%s is listed and could not be looked up: %v", name, h.Err)
	case len(h.Addresses) == 0:
		f.add(Warning, CheckMX, nil, "%s is listed and has no address", name)
	case h.Alias != "":
		f.add(Warning, CheckMX, nil, "%s is a CNAME: an MX record must not lead to one (RFC 2181 section 10.3), and some senders do not follow it", name)
	}
}
