package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// adminCluster is the node as the admin service sees it.
type adminCluster struct{ n *Node }

// Status returns what this node says of itself and its cluster.
func (n *Node) Status(ctx context.Context) admin.Status { return adminCluster{n}.Status(ctx) }

// Members returns what this node knows of itself and the others.
func (n *Node) Members() []admin.Member { return adminCluster{n}.Members() }

// Scrub begins a scrub on a node, ends it, or tells how far it is.
func (n *Node) Scrub(ctx context.Context, name string, a admin.ScrubAction) (admin.Scrub, error) {
	return adminCluster{n}.Scrub(ctx, fsm.NodeName(name), a)
}

func (a adminCluster) View() *fsm.State { return a.n.member.View() }

func (a adminCluster) Do(ctx context.Context, action fsm.Action) (fsm.Result, error) {
	result, err := a.n.member.Do(ctx, action)
	return result, adminError(err)
}

func (a adminCluster) OpenBody(ctx context.Context, ref mail.BodyRef) (io.ReadSeekCloser, error) {
	return a.n.member.OpenBody(ctx, ref)
}

func (a adminCluster) Understood(action fsm.Action) bool { return a.n.member.Understood(action) }

// adminError is an error of the cluster in the service's words.
func adminError(err error) error {
	if errors.Is(err, cluster.ErrNotAccepted) {
		return fmt.Errorf("%w: %w", admin.ErrNotAccepted, err)
	}
	return err
}

func (a adminCluster) Status(context.Context) admin.Status {
	n := a.n
	raft := n.member.Node()
	leader, known := raft.Leader()
	term, leads := raft.Reign()
	spool := n.spool.Stats()
	s := admin.Status{
		Cluster: n.config.Cluster, Node: n.config.Node, ServerID: string(n.serverID), Version: Version,
		Leader: fsm.NodeName(leader.Name()), IsLeader: leads, Term: term,
		Commit: fsm.Index(raft.CommitIndex()), Floor: fsm.Index(raft.Floor()),
		Quorum: known, CatchingUp: errors.Is(n.member.Ready(), cluster.ErrCatchingUp), LastContact: raft.LastContact(),
		Spool:  admin.SpoolStats{Bodies: spool.Bodies, Bytes: spool.BodyBytes, Segments: spool.Segments, DiskBytes: spool.DiskBytes},
		Alarms: n.alarms(), Hostname: n.config.Hostname, SMTPAddresses: n.smtpAddresses(),
	}
	if s.IsLeader {
		s.LastContact = n.seams.Now()
	}
	for _, server := range raft.Servers() {
		if server.Voter {
			s.Voters = append(s.Voters, fsm.NodeName(server.ID.Name()))
		}
	}
	for _, name := range n.member.Complete() {
		s.Complete = append(s.Complete, fsm.NodeName(name))
	}
	sessions, connections := n.smtp.Stats(), n.smtp.GateStats()
	s.SMTPSessions = int(connections.Connections.Load())
	s.Counters = admin.NodeCounters{
		SMTPConnections:  connections.Accepted.Load(),
		SMTPAccepted:     sessions.Accepted.Load(),
		AcceptUnknown:    sessions.AcceptUnknown.Load(),
		SMTPRefused:      sessions.NotAccepted.Load() + sessions.Refused.Load() + sessions.MemoryRefused.Load(),
		DeliveryAttempts: uint64(n.agent.Stats().Attempts.Load()),
	}
	if n.ondemand != nil {
		calls := n.ondemand.Stats()
		s.Counters.ATRNCalls, s.Counters.ATRNAuthFailed = calls.Calls.Load(), calls.AuthFailed.Load()+calls.AuthBarred.Load()
	}
	return s
}

func (n *Node) smtpAddresses() []string {
	var all []string
	for _, host := range n.directory.Mailhosts() {
		all = append(all, host.SMTP...)
	}
	return all
}

func (a adminCluster) Members() []admin.Member {
	members := map[string]*admin.Member{}
	var order []string
	for _, m := range a.n.directory.Members() {
		members[m.ServerID] = &m
		order = append(order, m.ServerID)
	}
	leader, _ := a.n.member.Node().Leader()
	for _, server := range a.n.member.Node().Servers() {
		m, ok := members[string(server.ID)]
		if !ok {
			m = &admin.Member{Name: fsm.NodeName(server.ID.Name()), ServerID: string(server.ID), ClusterAddress: server.Address}
			members[m.ServerID] = m
			order = append(order, m.ServerID)
		}
		m.Voter, m.Nonvoter = server.Voter, !server.Voter
		m.Leader = server.ID == leader
	}
	conditions := a.n.member.Conditions()
	all := make([]admin.Member, 0, len(order))
	for _, id := range order {
		m := members[id]
		c, asked := conditions[string(m.Name)]
		switch {
		case c.ServerID == id && !c.At.IsZero():
			m.Hydration, m.Scrub, m.Said, m.Silent = hydrationOf(c.Hydration), scrubOf(c.Scrub), c.At, c.Err
		case asked && c.ServerID != "" && c.ServerID != id:
			m.Silent = fmt.Errorf("the node is %s now", c.ServerID)
		case asked:
			m.Silent = c.Err
		}
		all = append(all, *m)
	}
	return all
}

var scrubActions = map[admin.ScrubAction]peer.ScrubAction{
	admin.ScrubLook: peer.ScrubLook, admin.ScrubStart: peer.ScrubStart, admin.ScrubStop: peer.ScrubStop,
}

func (a adminCluster) Scrub(ctx context.Context, name fsm.NodeName, what admin.ScrubAction) (admin.Scrub, error) {
	action := scrubActions[what]
	if name == a.n.config.Node {
		return scrubOf(a.n.member.Scrub("an administrator", action)), nil
	}
	if !slices.ContainsFunc(a.Members(), func(m admin.Member) bool { return m.Name == name }) {
		return admin.Scrub{}, admin.ErrNoSuchNode
	}
	got, err := a.n.peers.Scrub(ctx, string(name), action)
	if err != nil {
		return admin.Scrub{}, fmt.Errorf("%w: %w", admin.ErrUnreachable, err)
	}
	return scrubOf(got), nil
}

func (a adminCluster) Compare(ctx context.Context) []admin.Copy {
	var all []admin.Copy
	for _, c := range a.n.member.Compare(ctx) {
		all = append(all, admin.Copy{Server: c.Server, Index: fsm.Index(c.Index), Sum: c.Sum, Messages: c.Messages, Silent: c.Err})
	}
	return all
}

func (a adminCluster) ChangeMember(ctx context.Context, c admin.MemberChange) (string, error) {
	action := peer.MemberAdd
	if c.Remove {
		action = peer.MemberRemove
	}
	refusal, err := a.n.member.ChangeServers(ctx, peer.Membership{Action: action, Name: string(c.Name), Force: c.Force})
	return refusal, adminError(err)
}

// timeOf is a time in Unix seconds, zero where that is 0.
func timeOf(unix int64) time.Time {
	if unix == 0 {
		return time.Time{}
	}
	return time.Unix(unix, 0)
}

func hydrationOf(h peer.Hydration) admin.Hydration {
	return admin.Hydration{
		Known: h.Known, Missing: h.Missing, MissingBytes: h.MissingBytes, Fetched: h.Fetched, FetchedBytes: h.FetchedBytes,
		Rate: h.Rate, NotFound: h.NotFound, Lost: h.Lost, WaitingFor: h.WaitingFor, LastError: h.LastError, LastErrorAt: timeOf(h.LastErrorUnix),
	}
}

func scrubOf(s peer.Scrub) admin.Scrub {
	return admin.Scrub{
		Running: s.Running, Stopped: s.Stopped, Began: timeOf(s.BeganUnix), Ended: timeOf(s.EndedUnix),
		Bodies: s.Bodies, Bytes: s.Bytes, Total: s.Total, TotalBytes: s.TotalBytes,
		Bad: s.Bad, Repaired: s.Repaired, Unread: s.Unread, Problem: s.Problem,
	}
}

// gateAlarmAfter is how long a node may refuse Raft's entries for want of their
// bodies before it is an alarm: Raft's channel works, and that of the bodies
// does not.
const gateAlarmAfter = 30 * time.Second

// alarms are what only this node can know of.
func (n *Node) alarms() []admin.Alarm {
	var all []admin.Alarm
	scope := "node " + string(n.config.Node)
	if err := n.Err(); err != nil {
		all = append(all, admin.Alarm{Name: "node-failed", Scope: scope, Cause: err.Error(),
			Remedy: "look at the disk and the log of this node, then start it again; the others have what it had"})
	}
	if n.space.low.Load() {
		all = append(all, admin.Alarm{Name: "disk-low", Scope: scope,
			Cause:  fmt.Sprintf("less than %d %% of the disk below %s is free; mail is answered 452 here", lowPercent(n.config.DiskFreeMinPercent), n.config.DataDir),
			Remedy: "free space, or move data_dir to a larger disk"})
	}
	stats := n.member.Node().Stats()
	if since := stats.RefusingSince; !since.IsZero() && n.seams.Now().Sub(since) > gateAlarmAfter {
		all = append(all, admin.Alarm{Name: "bodies-do-not-arrive", Scope: scope, Since: since,
			Cause:  "log entries arrive and the bodies that they name do not",
			Remedy: "see that this node reaches the cluster port of the others, and has room on its disk"})
	}
	if stats.StoreStalled {
		all = append(all, admin.Alarm{Name: "disk-stalled", Scope: scope,
			Cause: "a write to the disk of this node hangs; it takes no mail and does not lead", Remedy: "look at the disk of this node"})
	}
	if s := n.spool.Stats(); s.Bad+s.Damage > 0 {
		all = append(all, admin.Alarm{Name: "spool-damaged", Scope: scope,
			Cause:  fmt.Sprintf("%d bodies and %d places of the spool cannot be read", s.Bad, s.Damage),
			Remedy: "replace the disk; the other nodes hold what was here"})
	}
	all = append(all, n.refusals.alarms(n.isDomain)...)
	all = append(all, n.owed.alarms(n.config.Cluster, n.seams.Now())...)
	return append(all, n.tlsAlarms.alarms(n.tlsPolicy)...)
}
