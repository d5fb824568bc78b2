package admin

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

func members(all []Member, now time.Time) []*adminpb.Member {
	all = slices.Clone(all)
	slices.SortFunc(all, func(a, b Member) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.ServerID, b.ServerID)) })
	out := make([]*adminpb.Member, len(all))
	for i, m := range all {
		p := &adminpb.Member{
			Name: text(string(m.Name)), ServerId: text(m.ServerID), ClusterAddress: text(m.ClusterAddress),
			GossipStatus: text(m.GossipStatus), Voter: m.Voter, Leader: m.Leader, HasState: m.HasState,
			CommandVersion: m.CommandVersion, Lag: m.Lag, Nonvoter: m.Nonvoter, Hostname: text(m.Hostname),
		}
		for _, at := range m.SMTPAddresses {
			p.SmtpAddresses = append(p.SmtpAddresses, text(at))
		}
		if !m.Said.IsZero() {
			p.Hydration, p.Scrub = hydrationToProto(m.Hydration), scrubToProto(m.Scrub)
			p.SaidMs = max(0, now.Sub(m.Said).Milliseconds())
		}
		if m.Silent != nil {
			p.Silent = text(m.Silent.Error())
		}
		out[i] = p
	}
	return out
}

func hydrationToProto(h Hydration) *adminpb.Hydration {
	p := &adminpb.Hydration{
		Known: h.Known, Missing: h.Missing, MissingBytes: octets(h.MissingBytes),
		Fetched: h.Fetched, FetchedBytes: octets(h.FetchedBytes), Rate: octets(h.Rate),
		NotFound: h.NotFound, Lost: h.Lost, WaitingFor: text(h.WaitingFor), LastError: text(h.LastError), LastErrorUnix: unixTime(h.LastErrorAt),
	}
	if h.Missing > 0 && h.Rate > 0 {
		left := int64(float64(h.MissingBytes) / float64(h.Rate) * 1000)
		p.LeftMs = &left
	}
	return p
}

// scrubToProto is nil where there was no scrub.
func scrubToProto(s Scrub) *adminpb.Scrub {
	if s.Began.IsZero() {
		return nil
	}
	return &adminpb.Scrub{
		Running: s.Running, Stopped: s.Stopped, BeganUnix: unixTime(s.Began), EndedUnix: unixTime(s.Ended),
		Bodies: s.Bodies, Bytes: octets(s.Bytes), TotalBodies: s.Total, TotalBytes: octets(s.TotalBytes),
		Bad: s.Bad, Repaired: s.Repaired, Unread: s.Unread, Problem: text(s.Problem),
	}
}

func octets(n mail.ByteSize) uint64 { return uint64(max(0, n)) }

// unixTime is a time on the wire: 0 where there is none.
func unixTime(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// nodeNameBytesMax is the longest name that a node can have.
const nodeNameBytesMax = 63

// nodeName reads the name of a node, "" for the one that answers.
func (s *Service) nodeName(ctx context.Context, name string) (fsm.NodeName, error) {
	switch {
	case name == "":
		return s.cluster.Status(ctx).Node, nil
	case len(name) > nodeNameBytesMax || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
		return "", status.Error(codes.InvalidArgument, "node: a name has up to 63 lower case letters, digits and hyphens")
	}
	return fsm.NodeName(name), nil
}

// AddMember implements adminpb.AdminServiceServer.
func (s *Service) AddMember(ctx context.Context, r *adminpb.AddMemberRequest) (*adminpb.AddMemberReply, error) {
	if err := s.changeMember(ctx, "AddMember", r.GetName(), MemberChange{}); err != nil {
		return nil, err
	}
	return &adminpb.AddMemberReply{}, nil
}

// RemoveMember implements adminpb.AdminServiceServer.
func (s *Service) RemoveMember(ctx context.Context, r *adminpb.RemoveMemberRequest) (*adminpb.RemoveMemberReply, error) {
	if err := s.changeMember(ctx, "RemoveMember", r.GetName(), MemberChange{Remove: true, Force: r.GetForce()}); err != nil {
		return nil, err
	}
	return &adminpb.RemoveMemberReply{}, nil
}

func (s *Service) changeMember(ctx context.Context, call, name string, c MemberChange) error {
	if name == "" {
		return status.Error(codes.InvalidArgument, "name: it is missing")
	}
	var err error
	if c.Name, err = s.nodeName(ctx, name); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, proposeWait)
	defer cancel()
	refusal, err := s.cluster.ChangeMember(ctx, c)
	switch {
	case err != nil:
		err = s.failure(ctx, err)
	case refusal != "":
		err = s.hinted(ctx, codes.FailedPrecondition, false, refusal)
	}
	detail := ""
	if c.Force {
		detail = "force"
	}
	s.audit(ctx, change{call: call, subject: name, kind: "member", detail: detail}, err)
	return err
}

// Scrub implements adminpb.AdminServiceServer.
func (s *Service) Scrub(ctx context.Context, r *adminpb.ScrubRequest) (*adminpb.ScrubReply, error) {
	node, err := s.nodeName(ctx, r.GetNode())
	if err != nil {
		return nil, err
	}
	action, ok := map[adminpb.ScrubRequest_Action]ScrubAction{
		adminpb.ScrubRequest_LOOK: ScrubLook, adminpb.ScrubRequest_START: ScrubStart, adminpb.ScrubRequest_STOP: ScrubStop,
	}[r.GetAction()]
	if !ok {
		return nil, status.Errorf(codes.InvalidArgument, "action %d is not known", r.GetAction())
	}
	ctx, cancel := context.WithTimeout(ctx, proposeWait)
	defer cancel()
	got, err := s.cluster.Scrub(ctx, node, action)
	switch {
	case errors.Is(err, ErrNoSuchNode):
		err = status.Errorf(codes.NotFound, "there is no node %q", node)
	case errors.Is(err, ErrUnreachable):
		s.log.WarnContext(ctx, "node not reached", "member", string(node), "cause", err)
		err = s.hinted(ctx, codes.Unavailable, false, "node "+string(node)+" does not answer")
	case err != nil:
		err = status.Error(codes.FailedPrecondition, text(err.Error()))
	}
	if action != ScrubLook {
		s.audit(ctx, change{call: "Scrub", subject: string(node), kind: "member", detail: strings.ToLower(r.GetAction().String())}, err)
	}
	if err != nil {
		return nil, err
	}
	return &adminpb.ScrubReply{Node: string(node), Scrub: scrubToProto(got)}, nil
}
