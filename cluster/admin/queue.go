package admin

import (
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// The bounds of ListQueue.
const (
	pageDefault = 100
	pageMax     = 1000
	// scanMax is how many messages one call looks at, whether they match or not.
	scanMax = 10_000
	// scanCheck is how often a call looks whether its client has gone.
	scanCheck = 256
)

// reasonBytesMax bounds the reason of a hold.
const reasonBytesMax = 200

// aliasesShown bounds the aliases in ShowMessage.
const aliasesShown = 100

// queueID reads an id of a request.
func queueID(s string) (mail.QueueID, error) {
	if s == "" {
		return mail.QueueID{}, status.Error(codes.InvalidArgument, "queue_id is missing")
	}
	id, err := mail.ParseQueueID(s)
	if err != nil {
		return mail.QueueID{}, status.Error(codes.InvalidArgument, text(err.Error()))
	}
	return id, nil
}

// ListQueue implements adminpb.AdminServiceServer.
func (s *Service) ListQueue(ctx context.Context, r *adminpb.ListQueueRequest) (*adminpb.ListQueueReply, error) {
	want, err := filterOf(r)
	if err != nil {
		return nil, err
	}
	size := int(r.GetPageSize())
	switch {
	case size < 0 || size > pageMax:
		return nil, status.Errorf(codes.InvalidArgument, "page_size %d: want 1 to %d, or 0 for %d", size, pageMax, pageDefault)
	case size == 0:
		size = pageDefault
	}
	var from mail.QueueID
	more := true
	if token := r.GetPageToken(); token != "" {
		last, err := mail.ParseQueueID(token)
		if err != nil {
			return nil, status.Error(codes.InvalidArgument, "page_token is not one that ListQueue gave")
		}
		from, more = successor(last)
	}
	view := s.cluster.View()
	reply := &adminpb.ListQueueReply{Freshness: s.freshness(view, s.cluster.Status(ctx))}
	if !more {
		return reply, nil
	}
	looked := 0
	var last mail.QueueID
	for m := range view.Messages(from) {
		// Whatever comes now, there is at least this one more.
		if len(reply.Messages) == size || looked == scanMax {
			reply.NextPageToken = last.String()
			break
		}
		if looked%scanCheck == 0 && ctx.Err() != nil {
			return nil, status.FromContextError(ctx.Err()).Err()
		}
		looked++
		last = m.ID
		if want.matches(m) {
			reply.Messages = append(reply.Messages, summary(m))
		}
	}
	return reply, nil
}

// successor returns the id behind id, and false where there is none.
func successor(id mail.QueueID) (mail.QueueID, bool) {
	for i := len(id) - 1; i >= 0; i-- {
		id[i]++
		if id[i] != 0 {
			return id, true
		}
	}
	return id, false
}

// A filter chooses messages by one recipient that fits in every respect.
type filter struct {
	domain mail.Domain          // "" is any
	states []fsm.RecipientState // never empty
}

func filterOf(r *adminpb.ListQueueRequest) (filter, error) {
	f := filter{states: []fsm.RecipientState{fsm.RecipientQueued, fsm.RecipientHeld}}
	if r.GetDomain() != "" {
		d, err := domainName("domain", r.GetDomain())
		if err != nil {
			return filter{}, err
		}
		f.domain = d
	}
	if want := r.GetState(); want != adminpb.RecipientState_RECIPIENT_STATE_UNSPECIFIED {
		f.states = nil
		for _, state := range recipientStates {
			if recipientState(state) == want {
				f.states = append(f.states, state)
			}
		}
		if f.states == nil {
			return filter{}, status.Errorf(codes.InvalidArgument, "state %d is not known", int32(want))
		}
	}
	return f, nil
}

func (f filter) matches(m fsm.Message) bool {
	for i, r := range m.Recipients {
		if slices.Contains(f.states, r.State) && (f.domain == "" || m.Envelope.Recipients[i].Domain == f.domain) {
			return true
		}
	}
	return false
}

// recipientStates are all states that a recipient can be in.
var recipientStates = [...]fsm.RecipientState{
	fsm.RecipientQueued, fsm.RecipientHeld, fsm.RecipientDelivered, fsm.RecipientFailed, fsm.RecipientRemoved,
}

// recipientState is a state as it goes on the wire.
func recipientState(s fsm.RecipientState) adminpb.RecipientState {
	switch s {
	case fsm.RecipientQueued:
		return adminpb.RecipientState_RECIPIENT_STATE_QUEUED
	case fsm.RecipientHeld:
		return adminpb.RecipientState_RECIPIENT_STATE_HELD
	case fsm.RecipientDelivered:
		return adminpb.RecipientState_RECIPIENT_STATE_DELIVERED
	case fsm.RecipientFailed:
		return adminpb.RecipientState_RECIPIENT_STATE_FAILED
	case fsm.RecipientRemoved:
		return adminpb.RecipientState_RECIPIENT_STATE_REMOVED
	}
	return adminpb.RecipientState_RECIPIENT_STATE_UNSPECIFIED
}

func summary(m fsm.Message) *adminpb.MessageSummary {
	s := &adminpb.MessageSummary{
		QueueId: m.ID.String(), From: text(m.Envelope.From.String()), Size: int64(m.Body.Size),
		ReceivedUnix: m.Envelope.Trace.Received, Node: text(string(m.Node)),
		Recipients: uint32(len(m.Recipients)), PossibleDuplicate: m.PossibleDuplicate,
	}
	for _, r := range m.Recipients {
		switch r.State {
		case fsm.RecipientQueued:
			s.Queued++
		case fsm.RecipientHeld:
			s.Held++
		}
		if s.LastReply == "" && r.State != fsm.RecipientDelivered {
			s.LastReply = replyText(r.Reply)
			if s.LastReply == "" {
				s.LastReply = text(r.Reason)
			}
		}
	}
	for _, p := range m.Parts {
		s.Domains = append(s.Domains, string(p.Domain))
		s.Attempts = max(s.Attempts, uint32(p.Attempts))
		s.Leased = s.Leased || p.Lease != 0
	}
	return s
}

func replyText(r mail.Reply) string {
	if r.Code == 0 {
		return text(r.Text)
	}
	return text(r.String())
}

// ShowMessage implements adminpb.AdminServiceServer.
func (s *Service) ShowMessage(ctx context.Context, r *adminpb.ShowMessageRequest) (*adminpb.ShowMessageReply, error) {
	id, err := queueID(r.GetQueueId())
	if err != nil {
		return nil, err
	}
	view := s.cluster.View()
	m, ok := view.Message(id)
	if !ok {
		return nil, status.Errorf(codes.NotFound, "no message %s: it was never accepted, has ended and is forgotten, or this node has not heard of it yet", id)
	}
	return &adminpb.ShowMessageReply{Freshness: s.freshness(view, s.cluster.Status(ctx)), Message: messageToProto(view, m)}, nil
}

func messageToProto(view *fsm.State, m fsm.Message) *adminpb.Message {
	e := m.Envelope
	p := &adminpb.Message{
		QueueId: m.ID.String(), From: text(e.From.String()), Size: int64(m.Body.Size), Sha256: m.Body.Digest.String(),
		ReceivedUnix: e.Trace.Received, Node: text(string(m.Node)), Hello: text(e.Trace.Hello),
		Protocol: text(e.Trace.Protocol), Tls: text(e.Trace.TLS), EnvelopeId: text(e.EnvelopeID),
		EightBit: e.EightBit, Smtputf8: e.SMTPUTF8,
		Settled: m.Settled, PossibleDuplicate: m.PossibleDuplicate, Finished: m.Finished,
	}
	if e.Trace.Client.IsValid() {
		p.Client = e.Trace.Client.String()
	}
	switch e.Return {
	case mail.ReturnFull:
		p.Ret = "FULL"
	case mail.ReturnHeaders:
		p.Ret = "HDRS"
	}
	for i, r := range m.Recipients {
		to := e.Recipients[i]
		p.Recipients = append(p.Recipients, &adminpb.RecipientStatus{
			Path: text(to.Path.String()), Domain: string(to.Domain), State: recipientState(r.State),
			Reply: replyText(r.Reply), Reason: text(r.Reason), Notify: notifyWords(to.Notify), Original: text(to.Original),
			DeliveredLate: r.DeliveredLate != 0,
		})
		if r.Report != 0 {
			p.Recipients[i].Report = r.Report.String()
		}
	}
	for _, part := range m.Parts {
		p.Parts = append(p.Parts, partToProto(view, part))
	}
	for _, a := range m.Aliases[:min(len(m.Aliases), aliasesShown)] {
		p.Aliases = append(p.Aliases, a.String())
	}
	return p
}

func notifyWords(n mail.Notify) []string {
	var words []string
	for _, w := range []struct {
		bit  mail.Notify
		word string
	}{{mail.NotifyNever, "NEVER"}, {mail.NotifySuccess, "SUCCESS"}, {mail.NotifyFailure, "FAILURE"}, {mail.NotifyDelay, "DELAY"}} {
		if n&w.bit != 0 {
			words = append(words, w.word)
		}
	}
	return words
}

func partToProto(view *fsm.State, part fsm.Part) *adminpb.Part {
	now := view.Now()
	p := &adminpb.Part{
		Domain: string(part.Domain), LeaseToken: uint64(part.Lease), Holder: text(string(part.Holder)),
		Begun: part.Begun, Attempts: uint32(part.Attempts),
		RetryInMs: int64(max(0, part.RetryAt-now)), DoubtInMs: int64(max(0, part.DoubtUntil-now)),
	}
	if part.ExpiresAt > 0 {
		p.ExpiresInMs = int64(max(1, part.ExpiresAt-now))
	}
	hop := view.NextHop(part.Domain)
	switch {
	case part.Lease != 0:
		p.Waiting = fmt.Sprintf("the lease of %s", p.Holder)
	case part.Queued == 0 && part.Held > 0:
		p.Waiting = "its release"
	case part.Queued == 0:
	case p.DoubtInMs > 0:
		p.Waiting = fmt.Sprintf("a node that may still report it delivered, up to %s", logSpan(p.DoubtInMs))
	case hop.Stopped:
		p.Waiting = fmt.Sprintf("the administrator: its next hop is back and refused what it should have taken; see %q", "holdfast domain resume "+string(part.Domain))
	case hop.State == fsm.NextHopDown:
		p.Waiting = "its next hop, which is down: " + text(hop.Detail)
	case hop.State == fsm.NextHopRefusing:
		p.Waiting = "its next hop, which answers and refuses every node: " + text(hop.Detail)
	case p.RetryInMs > 0:
		p.Waiting = fmt.Sprintf("a retry in %s", logSpan(p.RetryInMs))
	case part.Slow():
		p.Waiting = "its turn in the slow lane, since its next hop has put it off so often"
	default:
		p.Waiting = "its turn"
	}
	return p
}

func logSpan(ms int64) string {
	return (time.Duration(ms) * time.Millisecond).Round(time.Second).String()
}

// HoldMessage implements adminpb.AdminServiceServer.
func (s *Service) HoldMessage(ctx context.Context, r *adminpb.HoldMessageRequest) (*adminpb.HoldMessageReply, error) {
	id, err := queueID(r.GetQueueId())
	if err != nil {
		return nil, err
	}
	if len(r.GetReason()) > reasonBytesMax {
		return nil, status.Errorf(codes.InvalidArgument, "reason has %d octets, and at most %d are kept", len(r.GetReason()), reasonBytesMax)
	}
	result, err := s.do(ctx, change{"HoldMessage", id.String(), "queue_id", r.GetReason(), fsm.Hold{ID: id, Reason: r.GetReason()}})
	if err != nil {
		return nil, err
	}
	return &adminpb.HoldMessageReply{MayStillArrive: result.MayStillArrive}, nil
}

// ReleaseMessage implements adminpb.AdminServiceServer.
func (s *Service) ReleaseMessage(ctx context.Context, r *adminpb.ReleaseMessageRequest) (*adminpb.ReleaseMessageReply, error) {
	id, err := queueID(r.GetQueueId())
	if err != nil {
		return nil, err
	}
	if _, err := s.do(ctx, change{"ReleaseMessage", id.String(), "queue_id", "", fsm.Release{ID: id}}); err != nil {
		return nil, err
	}
	return &adminpb.ReleaseMessageReply{}, nil
}

// RemoveMessage implements adminpb.AdminServiceServer.
func (s *Service) RemoveMessage(ctx context.Context, r *adminpb.RemoveMessageRequest) (*adminpb.RemoveMessageReply, error) {
	id, err := queueID(r.GetQueueId())
	if err != nil {
		return nil, err
	}
	result, err := s.do(ctx, change{"RemoveMessage", id.String(), "queue_id", "", fsm.Remove{ID: id}})
	if err != nil {
		return nil, err
	}
	return &adminpb.RemoveMessageReply{MayStillArrive: result.MayStillArrive}, nil
}
