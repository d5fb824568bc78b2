package node

import (
	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// refusals are the relay domains whose primary refuses this node, as it said it last.
// The zero value is ready to use.
type refusals struct {
	standing[smtpclient.StageError]
}

// barred reports whether the primary refuses connections, and not just what they bring.
func (r *refusals) barred(d mail.Domain) bool {
	e := r.last(d)
	return e != nil && e.Stage < smtpclient.StageMail
}

// alarms returns one for each domain that still is one.
func (r *refusals) alarms(known func(mail.Domain) bool) []admin.Alarm {
	return r.standing.alarms(known, func(d mail.Domain, e *smtpclient.StageError) admin.Alarm {
		return admin.Alarm{
			Name:   admin.AlarmRefuses,
			Cause:  "the primary refuses this node, whatever it brings: " + e.Error() + ". Its mail waits, and none is bounced for this.",
			Remedy: admin.RefusesRemedy(d),
		}
	})
}

// isDomain reports whether d is a relay domain.
func (n *Node) isDomain(d mail.Domain) bool {
	_, ok := n.member.View().Domain(d)
	return ok
}
