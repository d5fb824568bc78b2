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
	last  *smtpclient.StageError
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
	old.last = e
	r.standing[d] = old
	return !stood
}

// barred reports whether the primary refuses connections, and not just what they bring.
func (r *refusals) barred(d mail.Domain) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	stands, ok := r.standing[d]
	return ok && stands.last.Stage < smtpclient.StageMail
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
			Name: admin.AlarmRefuses, Scope: "domain " + string(d), Since: stands.since,
			Cause:  "the primary refuses this node, whatever it brings: " + stands.last.Error() + ". Its mail waits, and none is bounced for this.",
			Remedy: admin.RefusesRemedy(d),
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
