package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// The JSON of "status". Field names are an interface.
type (
	statusJSON struct {
		Node         string         `json:"node"`
		Cluster      string         `json:"cluster"`
		ServerID     string         `json:"server_id"`
		Leader       string         `json:"leader"`
		IsLeader     bool           `json:"is_leader"`
		Term         uint64         `json:"term"`
		CommitIndex  uint64         `json:"commit_index"`
		AppliedIndex uint64         `json:"applied_index"`
		Floor        uint64         `json:"floor"`
		Voters       []string       `json:"voters"`
		Quorum       bool           `json:"quorum"`
		StaleMS      *int64         `json:"stale_ms"`
		Posture      string         `json:"posture"`
		Version      string         `json:"version"`
		SMTPSessions uint32         `json:"smtp_sessions"`
		FewestCopies *uint32        `json:"fewest_copies"` // at least so many; null where there is nothing to copy
		Complete     []string       `json:"complete"`      // the servers known to hold every live body
		Alarms       []alarmJSON    `json:"alarms"`
		Domains      []domainJSON   `json:"domains"`
		Queue        queueTotals    `json:"queue"`
		Counters     statusCounters `json:"counters"`
		Spool        spoolJSON      `json:"spool"`
		Members      []memberJSON   `json:"members"`
	}
	alarmJSON struct {
		Name   string `json:"name"`
		Scope  string `json:"scope"`
		Since  string `json:"since"` // RFC 3339, or empty
		Cause  string `json:"cause"`
		Remedy string `json:"remedy"`
	}
	queueTotals struct {
		Queued             uint64  `json:"queued"` // this and the next four: sums over the domains
		Held               uint64  `json:"held"`
		Leased             uint64  `json:"leased"`
		Waiting            uint64  `json:"waiting"`
		InDoubt            *uint64 `json:"in_doubt"` // null where there are too many to count
		Messages           uint64  `json:"messages"`
		Live               uint64  `json:"live"`
		LiveBytes          uint64  `json:"live_bytes"`
		Unsettled          uint64  `json:"unsettled"`
		PossibleDuplicates uint64  `json:"possible_duplicates"`
		Leases             uint64  `json:"leases"`
	}
	statusCounters struct {
		Accepted            uint64 `json:"accepted"`
		Repeats             uint64 `json:"repeats"`
		Delivered           uint64 `json:"delivered"`
		Removed             uint64 `json:"removed"`
		Expired             uint64 `json:"expired"` // held since they outlived their lifetime
		Failed              uint64 `json:"failed"`  // refused for good, and the sender told
		Reports             uint64 `json:"reports"` // to senders
		ReportsDropped      uint64 `json:"reports_dropped"`
		PossibleDuplicates  uint64 `json:"possible_duplicates"`
		DoubtsReported      uint64 `json:"doubts_reported"`
		DoubtsExpired       uint64 `json:"doubts_expired"`
		DeliveredLate       uint64 `json:"delivered_late"`
		ReportsIgnored      uint64 `json:"reports_ignored"`
		FingerprintsDropped uint64 `json:"fingerprints_dropped"`
		AcceptUnknownTotal  uint64 `json:"accept_unknown_total"`
		SMTPAccepted        uint64 `json:"smtp_accepted"`
		SMTPRefused         uint64 `json:"smtp_refused"`
		SMTPConnections     uint64 `json:"smtp_connections"`
		ATRNCalls           uint64 `json:"atrn_calls"`
		ATRNAuthFailed      uint64 `json:"atrn_auth_failed"`
		DeliveryAttempts    uint64 `json:"delivery_attempts"`
	}
	spoolJSON struct {
		Bodies    uint64 `json:"bodies"`
		Bytes     uint64 `json:"bytes"`
		Segments  uint64 `json:"segments"`
		DiskBytes uint64 `json:"disk_bytes"`
	}
)

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show alarms, then this node, the leader, the domains and the queue",
		Long: `Show what needs attention first, then this node and the cluster as it sees it.

Works on any node, also without a leader; says how old its view is.

"Copies" counts the nodes that are known to hold every live body, as of a few
seconds ago. It is the least that there can be: a node that does not answer, or
lacks one body, is not counted. Of messages accepted since, a majority of the
voters holds the body.`,
		Example: `  holdfast status
  holdfast status -o json | jq '.alarms'`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
				s, err := c.Status(ctx, &adminpb.StatusRequest{})
				if err != nil {
					return err
				}
				if a.output == "json" {
					return writeJSON(a.out, toStatusJSON(s))
				}
				return a.printStatus(s)
			})
		},
	}
}

func toStatusJSON(s *adminpb.StatusReply) statusJSON {
	q, c, sp := s.GetQueue(), s.GetCounters(), s.GetSpool()
	j := statusJSON{
		Node: s.GetNode(), Cluster: s.GetCluster(), ServerID: s.GetServerId(),
		Leader: s.GetLeader(), IsLeader: s.GetIsLeader(), Term: s.GetTerm(),
		CommitIndex: s.GetCommitIndex(), AppliedIndex: s.GetAppliedIndex(), Floor: s.GetFloor(),
		Voters: list(s.GetVoters()), Quorum: s.GetFreshness().GetQuorum(), StaleMS: staleMS(s.GetFreshness()),
		Posture: s.GetPosture(), Version: s.GetVersion(), SMTPSessions: s.GetSmtpSessions(), FewestCopies: s.FewestCopies, Complete: list(s.GetComplete()),
		Alarms: []alarmJSON{}, Domains: toDomainsJSON(s.GetDomains()), Members: toMembersJSON(s.GetMembers()),
		Queue: queueTotals{
			Queued: q.GetQueued(), Held: q.GetHeld(), Leased: q.GetLeased(), Waiting: q.GetWaiting(), InDoubt: q.InDoubt,
			Messages: q.GetMessages(), Live: q.GetLive(), LiveBytes: q.GetLiveBytes(), Unsettled: q.GetUnsettled(),
			PossibleDuplicates: q.GetPossibleDuplicates(), Leases: q.GetLeases(),
		},
		Counters: statusCounters{
			Accepted:            c.GetAccepted(),
			Repeats:             c.GetRepeats(),
			Delivered:           c.GetDelivered(),
			Removed:             c.GetRemoved(),
			Expired:             c.GetExpired(),
			Failed:              c.GetFailed(),
			Reports:             c.GetReports(),
			ReportsDropped:      c.GetReportsDropped(),
			PossibleDuplicates:  c.GetPossibleDuplicates(),
			DoubtsReported:      c.GetDoubtsReported(),
			DoubtsExpired:       c.GetDoubtsExpired(),
			DeliveredLate:       c.GetDeliveredLate(),
			ReportsIgnored:      c.GetReportsIgnored(),
			FingerprintsDropped: c.GetFingerprintsDropped(),
			AcceptUnknownTotal:  c.GetAcceptUnknownTotal(),
			SMTPAccepted:        c.GetSmtpAccepted(),
			SMTPRefused:         c.GetSmtpRefused(),
			SMTPConnections:     c.GetSmtpConnections(),
			ATRNCalls:           c.GetAtrnCalls(),
			ATRNAuthFailed:      c.GetAtrnAuthFailed(),
			DeliveryAttempts:    c.GetDeliveryAttempts(),
		},
		Spool: spoolJSON{Bodies: sp.GetBodies(), Bytes: sp.GetBytes(), Segments: sp.GetSegments(), DiskBytes: sp.GetDiskBytes()},
	}
	for _, al := range s.GetAlarms() {
		j.Alarms = append(j.Alarms, alarmJSON{
			Name: al.GetName(), Scope: al.GetScope(), Since: rfc3339(al.GetSinceUnix()), Cause: al.GetCause(), Remedy: al.GetRemedy(),
		})
	}
	return j
}

// rfc3339 is how JSON has a time: empty where it is unknown.
func rfc3339(unix int64) string {
	if unix == 0 {
		return ""
	}
	return time.Unix(unix, 0).UTC().Format(time.RFC3339)
}

func (a *app) printStatus(s *adminpb.StatusReply) error {
	if len(s.GetAlarms()) == 0 {
		fmt.Fprintln(a.out, "No alarms.")
	}
	for _, al := range s.GetAlarms() {
		since := ""
		if al.GetSinceUnix() != 0 {
			since = " since " + moment(al.GetSinceUnix())
		}
		fmt.Fprintf(a.out, "ALARM %s: %s%s\n    %s\n    To do: %s\n",
			escape(al.GetName()), escape(al.GetScope()), since, escape(al.GetCause()), escape(al.GetRemedy()))
	}
	fmt.Fprintln(a.out)

	t := newTable(a.out)
	t.row("Node", fmt.Sprintf("%s of cluster %s (server id %s, %s)", s.GetNode(), s.GetCluster(), s.GetServerId(), s.GetVersion()))
	leader := "none known"
	switch {
	case s.GetIsLeader():
		leader = fmt.Sprintf("%s, this node (term %d)", s.GetLeader(), s.GetTerm())
	case s.GetLeader() != "":
		leader = fmt.Sprintf("%s (term %d)", s.GetLeader(), s.GetTerm())
	}
	t.row("Leader", leader)
	quorum := "yes"
	if !s.GetFreshness().GetQuorum() {
		quorum = "NO: this node can commit nothing, and answers 421 to mail"
	}
	t.row("Quorum", quorum)
	t.row("Voters", strings.Join(s.GetVoters(), " "))
	t.row("Log", fmt.Sprintf("applied %d, committed %d, floor %d", s.GetAppliedIndex(), s.GetCommitIndex(), s.GetFloor()))
	t.row("View", viewAge(s.GetFreshness(), s.GetIsLeader()))
	t.row("Posture", s.GetPosture())
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	if err := a.printDomains(s.GetDomains()); err != nil {
		return err
	}
	fmt.Fprintln(a.out)

	q, c, sp := s.GetQueue(), s.GetCounters(), s.GetSpool()
	t = newTable(a.out)
	t.row("Queue", fmt.Sprintf("%d messages to deliver or held (%s), %d leases; of those remembered %d are possible duplicates, %d unsettled",
		q.GetLive(), size(int64(q.GetLiveBytes())), q.GetLeases(), q.GetPossibleDuplicates(), q.GetUnsettled()))
	t.row("Since founding", fmt.Sprintf("%d messages accepted, %d repeats recognised; %d recipients delivered, %d removed; %d attempts in doubt",
		c.GetAccepted(), c.GetRepeats(), c.GetDelivered(), c.GetRemoved(), c.GetPossibleDuplicates()))
	t.row("Senders told", fmt.Sprintf("of %d recipients that were refused for good; %d reports queued, %d dropped since they could not be delivered; %d recipients held since their time was over",
		c.GetFailed(), c.GetReports(), c.GetReportsDropped(), c.GetExpired()))
	t.row("This node", fmt.Sprintf("%d SMTP sessions open, %d messages answered 250, %d closed without a reply after the final dot, %d delivery attempts",
		s.GetSmtpSessions(), c.GetSmtpAccepted(), c.GetAcceptUnknownTotal(), c.GetDeliveryAttempts()))
	if s.FewestCopies != nil {
		t.row("Copies", fmt.Sprintf("at least %d of every live body (%s)", s.GetFewestCopies(), orNone(strings.Join(s.GetComplete(), " "))))
	}
	t.row("Spool", fmt.Sprintf("%d bodies, %s in %d segments", sp.GetBodies(), size(int64(sp.GetBytes())), sp.GetSegments()))
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	if err := a.printMembers(s.GetMembers()); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	return a.printBodies(s.GetMembers())
}

func orNone(names string) string {
	if names == "" {
		return "no node is known to have them all"
	}
	return names
}

func viewAge(f *adminpb.Freshness, leads bool) string {
	switch {
	case leads:
		return "the leader's own"
	case f.StaleMs == nil:
		return "this node has heard from no leader since it started"
	case f.GetCatchingUp():
		return "catching up with the leader"
	}
	return fmt.Sprintf("last heard from the leader %s ago", (time.Duration(f.GetStaleMs()) * time.Millisecond).Round(time.Millisecond))
}
