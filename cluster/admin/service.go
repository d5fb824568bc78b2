package admin

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// proposeWait bounds one change. It is less than a client waits by default, so
// that our answer, which says whether the change may still take effect, comes
// before the client gives up.
const proposeWait = 25 * time.Second

// Posture is what the cluster does with mail, in words, until domains have a
// posture of their own.
const Posture = "queue; unknown recipients of a relay domain are accepted; refused recipients, and mail whose lifetime is over, are held, or reported to their senders where the domain says so"

// Service implements adminpb.AdminServiceServer.
type Service struct {
	adminpb.UnimplementedAdminServiceServer
	cluster Cluster
	log     *slog.Logger
	alarm   alarmLog
}

// NewService returns the service of one node.
func NewService(c Cluster, log *slog.Logger) *Service {
	return &Service{cluster: c, log: log, alarm: alarmLog{log: log}}
}

// alarms returns the alarms of now, with since when they stand.
func (s *Service) alarms(view *fsm.State, st Status) []Alarm {
	now := time.Now()
	return s.alarm.update(Alarms(view, st, s.cluster.Members(), now), now)
}

// A change is one call that changes something.
type change struct {
	call    string // for the audit line
	subject string // what it is about
	kind    string // what the subject is: "queue_id", "domain" or "member"
	detail  string // what was asked for, beyond call and subject
	action  fsm.Action
}

// do proposes a change, writes its audit line, and turns what came of it into
// an answer. Nothing is retried here: Do knows what may be.
func (s *Service) do(ctx context.Context, c change) (fsm.Result, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeWait)
	defer cancel()
	result, err := s.cluster.Do(ctx, c.action)
	if err == nil {
		err = s.verdict(ctx, result)
	} else {
		err = s.failure(ctx, err)
	}
	s.audit(ctx, c, err)
	return result, err
}

// failure is the answer to an action that got no verdict.
func (s *Service) failure(ctx context.Context, err error) error {
	if errors.Is(err, ErrNotAccepted) && !errors.Is(err, ErrOutcomeUnknown) {
		return s.hinted(ctx, codes.Unavailable, false, "nothing was changed: this node could not have it committed; try again")
	}
	s.log.WarnContext(ctx, "outcome of a change unknown", "cause", err)
	return s.hinted(ctx, codes.DeadlineExceeded, true, "the outcome is unknown: the change may still take effect; look before trying again")
}

// verdict is the answer to an action that was applied, or nil.
func (s *Service) verdict(ctx context.Context, r fsm.Result) error {
	switch r.Verdict {
	case fsm.Done:
		return nil
	case fsm.Refused:
		return s.hinted(ctx, codes.FailedPrecondition, false, r.Text)
	case fsm.NotFound:
		return status.Error(codes.NotFound, text(r.Text))
	case fsm.Invalid:
		return status.Error(codes.InvalidArgument, text(r.Text))
	}
	s.log.ErrorContext(ctx, "verdict that no change can have", "verdict", int(r.Verdict), "text", r.Text)
	return status.Error(codes.Internal, "unexpected verdict")
}

// hinted is an error that says who leads.
func (s *Service) hinted(ctx context.Context, code codes.Code, unknown bool, message string) error {
	st := status.New(code, text(message))
	hint := &adminpb.Hint{Leader: string(s.cluster.Status(ctx).Leader), OutcomeUnknown: unknown}
	if with, err := st.WithDetails(hint); err == nil {
		st = with
	}
	return st.Err()
}

// audit writes the one line that a change leaves, whatever came of it.
func (s *Service) audit(ctx context.Context, c change, err error) {
	outcome := "done"
	if err != nil {
		outcome = status.Code(err).String()
	}
	attrs := []slog.Attr{slog.String("call", c.call), slog.String("outcome", outcome), slog.String(c.kind, c.subject)}
	if c.detail != "" {
		attrs = append(attrs, slog.String("detail", c.detail))
	}
	if err != nil {
		attrs = append(attrs, slog.String("answer", status.Convert(err).Message()))
	}
	attrs = append(attrs, callerAttrs(ctx)...)
	s.log.LogAttrs(ctx, slog.LevelInfo, "audit", attrs...)
}

func (s *Service) freshness(view *fsm.State, st Status) *adminpb.Freshness {
	f := &adminpb.Freshness{Node: string(st.Node), AppliedIndex: uint64(view.Applied()), Quorum: st.Quorum, CatchingUp: st.CatchingUp}
	switch {
	case st.IsLeader:
		f.StaleMs = new(int64)
	case !st.LastContact.IsZero():
		stale := max(0, time.Since(st.LastContact).Milliseconds())
		f.StaleMs = &stale
	}
	return f
}

// Status implements adminpb.AdminServiceServer.
func (s *Service) Status(ctx context.Context, _ *adminpb.StatusRequest) (*adminpb.StatusReply, error) {
	view, st := s.cluster.View(), s.cluster.Status(ctx)
	domains := domainStatuses(view)
	r := &adminpb.StatusReply{
		Freshness: s.freshness(view, st),
		Cluster:   st.Cluster, Node: string(st.Node), ServerId: st.ServerID, Version: st.Version,
		Leader: string(st.Leader), IsLeader: st.IsLeader, Term: st.Term,
		CommitIndex: uint64(st.Commit), AppliedIndex: uint64(view.Applied()), Floor: uint64(st.Floor),
		Voters:       names(st.Voters),
		Domains:      domains,
		Queue:        queueTotals(view, domains),
		Counters:     counters(view, st.Counters),
		Members:      members(s.cluster.Members(), time.Now()),
		SmtpSessions: uint32(max(0, st.SMTPSessions)),
		Posture:      Posture,
		Spool: &adminpb.SpoolStats{
			Bodies: uint64(max(0, st.Spool.Bodies)), Bytes: uint64(max(0, st.Spool.Bytes)),
			Segments: uint64(max(0, st.Spool.Segments)), DiskBytes: uint64(max(0, st.Spool.DiskBytes)),
		},
	}
	r.Complete = names(st.Complete)
	if view.Totals().Live > 0 {
		n := uint32(len(st.Complete))
		r.FewestCopies = &n
	}
	for _, a := range s.alarms(view, st) {
		r.Alarms = append(r.Alarms, &adminpb.Alarm{
			Name: text(a.Name), Scope: text(a.Scope), SinceUnix: a.Since.Unix(), Cause: text(a.Cause), Remedy: text(a.Remedy),
		})
	}
	return r, nil
}

// Members implements adminpb.AdminServiceServer.
func (s *Service) Members(ctx context.Context, _ *adminpb.MembersRequest) (*adminpb.MembersReply, error) {
	return &adminpb.MembersReply{
		Freshness: s.freshness(s.cluster.View(), s.cluster.Status(ctx)),
		Members:   members(s.cluster.Members(), time.Now()),
	}, nil
}

// queueTotals counts the mail of all domains, and the reports that wait to go to senders.
func queueTotals(view *fsm.State, domains []*adminpb.DomainStatus) *adminpb.QueueTotals {
	t := view.Totals()
	q := &adminpb.QueueTotals{
		Messages: uint64(t.Messages), Live: uint64(t.Live), LiveBytes: uint64(t.LiveBytes),
		Unsettled: uint64(t.Unsettled), PossibleDuplicates: uint64(t.Marked), Leases: uint64(t.Leases),
	}
	doubts, counted := uint64(0), true
	for _, d := range view.Destinations() {
		c := view.Counts(d.Name)
		q.Queued += uint64(c.Queued)
		q.Held += uint64(c.Held)
		q.Leased += uint64(c.Leased)
		q.Waiting += uint64(c.Waiting)
	}
	for _, d := range domains {
		doubts += d.GetInDoubt()
		counted = counted && d.InDoubt != nil
	}
	if counted {
		q.InDoubt = &doubts
	}
	return q
}

func counters(view *fsm.State, n NodeCounters) *adminpb.Counters {
	t := view.Totals()
	return &adminpb.Counters{
		Accepted: t.Accepted, Repeats: t.Repeats, Delivered: t.Delivered, Removed: t.Removed,
		PossibleDuplicates: t.DoubtsReported + t.DoubtsExpired,
		DoubtsReported:     t.DoubtsReported, DoubtsExpired: t.DoubtsExpired,
		DeliveredLate: t.DeliveredLate, ReportsIgnored: t.ReportsIgnored, FingerprintsDropped: t.FingerprintsDropped,
		Expired: t.Expired, Failed: t.Failed, Reports: t.Reports, ReportsDropped: t.ReportsDropped,
		AcceptUnknownTotal: n.AcceptUnknown, SmtpAccepted: n.SMTPAccepted, SmtpRefused: n.SMTPRefused,
		AtrnCalls: n.ATRNCalls, AtrnAuthFailed: n.ATRNAuthFailed,
		SmtpConnections: n.SMTPConnections, DeliveryAttempts: n.DeliveryAttempts,
	}
}

// text makes a string fit for protobuf, which takes nothing but UTF-8: replies
// of hostile servers and addresses can hold any octet.
func text(s string) string { return strings.ToValidUTF8(s, "\ufffd") }
