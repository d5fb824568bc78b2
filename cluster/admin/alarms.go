package admin

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// An Alarm is a named condition that somebody should know about.
type Alarm struct {
	Name   string // see the constants
	Scope  string // what it concerns: a domain, a node, the cluster
	Since  time.Time
	Cause  string
	Remedy string // what to do
}

// The alarms that this package finds, the most urgent first. Others come from
// the node, in Status.
const (
	AlarmNoCluster   = "no-cluster"
	AlarmNoQuorum    = "no-quorum"
	AlarmNextHopDown = "next-hop-down"
	AlarmRefuses     = "primary-refuses" // also by a node, where the others are let in
	AlarmStopped     = "delivery-stopped"
	AlarmMessageHeld = "messages-held"
	AlarmNoDomain    = "no-relay-domain"
	AlarmNotFound    = "bodies-not-found"
	AlarmLost        = "bodies-lost"
)

// urgency orders alarms for people. What the node itself reports, a failed disk
// for one, stands between the lost quorum and the next hops.
func urgency(name string) int {
	switch name {
	case AlarmNoCluster, AlarmNoQuorum:
		return 0
	case AlarmNextHopDown, AlarmRefuses, AlarmStopped:
		return 2
	case AlarmMessageHeld:
		return 3
	case AlarmNoDomain:
		return 4
	}
	return 1
}

// Alarms returns what is wrong, the most urgent first. Since is zero where
// neither the queue nor the node knows it.
func Alarms(view *fsm.State, s Status, members []Member, now time.Time) []Alarm {
	alarms := slices.Clone(s.Alarms)
	switch {
	case s.Quorum:
	case len(s.Voters) == 0:
		alarms = append(alarms, Alarm{
			Name: AlarmNoCluster, Scope: "node " + string(s.Node),
			Cause: "this node belongs to no cluster: it has no data and knows no voters. Mail is answered 421 and goes to the next MX.",
			Remedy: `if the cluster is new, start its other nodes and see by "holdfast members" that all know each other: they found it when there are as many as bootstrap_expect says. ` +
				fmt.Sprintf("If the cluster exists, see that data_dir is the right one and its disk is mounted. If it is new, or its data is lost: \"holdfast members add %s\" on another node.", s.Node),
		})
	default:
		cause := "it has heard from no leader since it started"
		if !s.LastContact.IsZero() {
			cause = fmt.Sprintf("it last heard from a leader %s ago", now.Sub(s.LastContact).Round(time.Second))
		}
		alarms = append(alarms, Alarm{
			Name: AlarmNoQuorum, Scope: "node " + string(s.Node), Since: s.LastContact,
			Cause:  "this node can commit nothing: " + cause + ". Mail is answered 421 and goes to the next MX.",
			Remedy: fmt.Sprintf("see that a majority of the voters (%s) runs, and that this node reaches them", strings.Join(names(s.Voters), ", ")),
		})
	}
	for _, m := range members {
		h := m.Hydration
		if h.Lost > 0 {
			alarms = append(alarms, Alarm{
				Name: AlarmLost, Scope: "node " + string(m.Name),
				Cause: fmt.Sprintf("no server of the cluster has a good copy of the bodies of %d messages. They are held: not sent, and not bounced.", h.Lost),
				Remedy: `look at "holdfast queue list --state held". If a disk with good copies still exists, bring its node back and release them when this alarm has ended; ` +
					`else tell the senders, and remove them by "holdfast queue remove"`,
			})
		}
		if h.NotFound > h.Lost {
			alarms = append(alarms, Alarm{
				Name: AlarmNotFound, Scope: "node " + string(m.Name),
				Cause: fmt.Sprintf("it lacks the bodies of %d queued or held messages, and no node that answers has %d of them; %s did not answer.",
					h.Missing, h.NotFound-h.Lost, h.WaitingFor),
				Remedy: fmt.Sprintf("start %s, or see that %s reaches it: it may have them. Until then those messages wait.", h.WaitingFor, m.Name),
			})
		}
	}
	domains := view.Domains()
	// Who is out of touch or behind may just not know of any.
	if len(domains) == 0 && s.Quorum && !s.CatchingUp {
		alarms = append(alarms, Alarm{
			Name: AlarmNoDomain, Scope: "cluster " + s.Cluster,
			Cause:  "there is no relay domain, so all mail is refused.",
			Remedy: `add one: "holdfast domain put NAME --to HOST"`,
		})
	}
	for _, d := range domains {
		hop, counts := view.NextHop(d.Name), view.Counts(d.Name)
		if hop.State == fsm.NextHopDown {
			alarms = append(alarms, Alarm{
				Name: AlarmNextHopDown, Scope: "domain " + string(d.Name), Since: wallTime(view, hop.Since, now),
				Cause:  fmt.Sprintf("%s cannot be reached by %s: %s. %d messages wait for it.", routeOf(d), strings.Join(names(hop.Failed), ", "), hop.Detail, counts.Queued),
				Remedy: fmt.Sprintf(`repair the primary; it is tried again every few seconds, and at once by "holdfast domain flush %s"`, d.Name),
			})
		}
		if hop.State == fsm.NextHopRefusing {
			scope := "domain " + string(d.Name)
			// What this node was told itself is the same alarm.
			alarms = slices.DeleteFunc(alarms, func(a Alarm) bool { return a.Name == AlarmRefuses && a.Scope == scope })
			alarms = append(alarms, Alarm{
				Name: AlarmRefuses, Scope: scope, Since: wallTime(view, hop.Since, now),
				Cause:  fmt.Sprintf("%s answers, and refuses %s: %s. %d messages wait for it, and none is bounced for this.", routeOf(d), strings.Join(names(hop.Barred), ", "), hop.Detail, counts.Queued),
				Remedy: RefusesRemedy(d.Name),
			})
		}
		if hop.Stopped {
			alarms = append(alarms, Alarm{
				Name: AlarmStopped, Scope: "domain " + string(d.Name), Since: wallTime(view, hop.StoppedAt, now),
				Cause: fmt.Sprintf("%s is back, and has refused %d messages for good that it should have taken. They are held; %d others wait, and none is delivered.",
					routeOf(d), hop.Refused, counts.Queued),
				Remedy: fmt.Sprintf(`see why the primary refuses ("holdfast queue list --domain %[1]s --state held"), and repair it; then "holdfast domain resume %[1]s", and "holdfast queue release" for those that are held`, d.Name),
			})
		}
		if counts.Held > 0 {
			alarms = append(alarms, Alarm{
				Name: AlarmMessageHeld, Scope: "domain " + string(d.Name),
				Cause:  fmt.Sprintf("%d messages are held: the primary refused a recipient, their lifetime is over, no server has a good copy, or an administrator held them.", counts.Held),
				Remedy: fmt.Sprintf(`look at "holdfast queue list --domain %s --state held", then release or remove each`, d.Name),
			})
		}
	}
	slices.SortStableFunc(alarms, func(a, b Alarm) int {
		return cmp.Or(cmp.Compare(urgency(a.Name), urgency(b.Name)), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Scope, b.Scope))
	})
	return alarms
}

// RefusesRemedy is what to do about AlarmRefuses.
func RefusesRemedy(d mail.Domain) string {
	return fmt.Sprintf(`have the primary take mail from the addresses of all nodes: see its block lists, its limits per client, and what TLS it demands; it is tried again every few seconds, and at once by "holdfast domain flush %s"`, d)
}

// wallTime is a moment of log time by this host's clock, as good as ticks are.
func wallTime(view *fsm.State, at fsm.Millis, now time.Time) time.Time {
	return now.Add(-time.Duration(view.Now()-at) * time.Millisecond)
}

func names(nodes []fsm.NodeName) []string {
	all := make([]string, len(nodes))
	for i, n := range nodes {
		all[i] = string(n)
	}
	slices.Sort(all)
	return all
}

// watchPeriod is how often alarms are looked at when nobody asks.
const watchPeriod = 5 * time.Second

// An alarmLog remembers which alarms stand, since when, and tells the log of
// each change once.
type alarmLog struct {
	log *slog.Logger

	mu    sync.Mutex
	since map[alarmKey]time.Time
}

type alarmKey struct{ name, scope string }

// update takes the alarms of now, logs those that are new or gone, and fills in
// since when this node has seen those that do not say.
func (l *alarmLog) update(alarms []Alarm, now time.Time) []Alarm {
	l.mu.Lock()
	defer l.mu.Unlock()
	standing := make(map[alarmKey]time.Time, len(alarms))
	for i := range alarms {
		a := &alarms[i]
		key := alarmKey{a.Name, a.Scope}
		first, known := l.since[key]
		if !known {
			first = now
			if !a.Since.IsZero() {
				first = a.Since
			}
			l.log.Warn("alarm raised", "alarm", a.Name, "scope", a.Scope, "cause", a.Cause, "remedy", a.Remedy)
		}
		// The first answer stands: a time reckoned from ticks wavers.
		a.Since, standing[key] = first, first
	}
	var gone []alarmKey
	for key := range l.since {
		if _, ok := standing[key]; !ok {
			gone = append(gone, key)
		}
	}
	slices.SortFunc(gone, func(a, b alarmKey) int { return cmp.Or(cmp.Compare(a.name, b.name), cmp.Compare(a.scope, b.scope)) })
	for _, key := range gone {
		l.log.Info("alarm cleared", "alarm", key.name, "scope", key.scope, "stood", now.Sub(l.since[key]).Round(time.Second).String())
	}
	l.since = standing
	return alarms
}

// WatchAlarms looks at the alarms until ctx ends, so that each is logged when it
// is raised and when it is cleared, also while nobody asks.
func (s *Service) WatchAlarms(ctx context.Context) {
	ticker := time.NewTicker(watchPeriod)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.alarms(s.cluster.View(), s.cluster.Status(ctx))
		}
	}
}
