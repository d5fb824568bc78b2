package node

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// refusals are the relay domains whose primary refuses this node, as it said it last.
// The zero value is ready to use.
type refusals struct {
	mu       sync.Mutex
	standing map[mail.Domain]refusal
}

type refusal struct {
	since time.Time
	why   string
}

// note takes how a primary received this node; nil is as it should. It reports
// whether that is news.
func (r *refusals) note(d mail.Domain, e *smtpclient.StageError, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	old, stood := r.standing[d]
	if e == nil {
		delete(r.standing, d)
		return stood
	}
	if !stood {
		old.since = now
	}
	if r.standing == nil {
		r.standing = make(map[mail.Domain]refusal)
	}
	old.why = e.Error()
	r.standing[d] = old
	return !stood
}

// alarms returns one for each domain that still is one.
func (r *refusals) alarms(known func(mail.Domain) bool) []admin.Alarm {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []admin.Alarm
	for d, stands := range r.standing {
		if !known(d) {
			continue
		}
		all = append(all, admin.Alarm{
			Name: "primary-refuses", Scope: "domain " + string(d), Since: stands.since,
			Cause: "the primary refuses this node, whatever it brings: " + stands.why + ". Its mail waits, and none is bounced for this.",
			Remedy: `have the primary take mail from the addresses of all nodes: see its block lists, its limits per client, and what TLS it demands; then "holdfast domain flush ` +
				string(d) + `"`,
		})
	}
	slices.SortFunc(all, func(a, b admin.Alarm) int { return strings.Compare(a.Scope, b.Scope) })
	return all
}

// isDomain reports whether d is a relay domain.
func (n *Node) isDomain(d mail.Domain) bool {
	_, ok := n.member.View().Domain(d)
	return ok
}
