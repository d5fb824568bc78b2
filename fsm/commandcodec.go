package fsm

import (
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// CommandVersion is the greatest version of a command that EncodeCommand writes
// and DecodeCommand reads, and so that this node can apply. A command has the
// least version that knows its kind, so that older nodes stop at no other.
const CommandVersion = 6

// VersionOf returns the version of a kind of command: a node can apply it whose
// CommandVersion is not less.
func VersionOf(a Action) uint32 {
	switch a := a.(type) {
	case RecordStart:
		return 2
	case PutSettings:
		if a.Settings.WaitsPerEntry != 0 {
			return 3
		}
	case ResumeDomain:
		return 4
	case PutDomain:
		switch {
		case a.Domain.called():
			return 6
		case a.Domain.latest():
			return 5
		case a.Domain.newer():
			return 4
		}
	case IssueReport, RecordPolicy:
		return 5
	case ReportNextHop:
		if a.Refused {
			return 6
		}
	case RecordOutcomes:
		for _, m := range a.Messages {
			if slices.ContainsFunc(m.Recipients, func(r RecipientOutcome) bool { return r.Relayed }) {
				return 5
			}
		}
	}
	return 1
}

// CommandVersion returns a version of commands that every server can apply, since the
// log had one that has left its trace in the State.
func (s *State) CommandVersion() uint32 {
	switch {
	case s.called(), s.refusing():
		return 6
	case s.reporting():
		return 5
	case s.scheduled():
		return 4
	case s.settings.WaitsPerEntry > 0:
		return 3
	case s.starts.len() > 0:
		return 2
	}
	return 1
}

// ErrUnknownCommand says that a command is of a version or kind, or has a field
// or value, that this version of Holdfast does not know. A node that finds one
// in the log must stop: to skip it would part it from the others.
var ErrUnknownCommand = errors.New("unknown command")

// EncodeCommand returns the command as it stands in a Raft entry. The same
// command gives the same bytes.
func EncodeCommand(c Command) ([]byte, error) {
	p := &queuepb.Command{Version: VersionOf(c.Action), Node: clean(string(c.Node)), Settled: packIDs(c.Settled)}
	switch a := c.Action.(type) {
	case Accept:
		p.Action = &queuepb.Command_Accept{Accept: acceptToProto(a)}
	case Settle:
		p.Action = &queuepb.Command_Settle{Settle: &queuepb.Settle{}}
	case GrantLeases:
		p.Action = &queuepb.Command_GrantLeases{GrantLeases: &queuepb.GrantLeases{
			Holder: clean(string(a.Holder)), Domain: clean(string(a.Domain)), Messages: packIDs(a.Messages),
		}}
	case RenewLeases:
		p.Action = &queuepb.Command_RenewLeases{RenewLeases: &queuepb.RenewLeases{
			Holder:        clean(string(a.Holder)),
			Token:         uint64(a.Token),
			RequestBoot:   a.Request.Boot,
			RequestNumber: a.Request.Number,
			Begun:         packIDs(a.Begun),
		}}
	case ExpireLeases:
		p.Action = &queuepb.Command_ExpireLeases{ExpireLeases: &queuepb.ExpireLeases{
			Token: uint64(a.Token), Renewal: uint64(a.Renewal),
		}}
	case RecordOutcomes:
		p.Action = &queuepb.Command_RecordOutcomes{RecordOutcomes: outcomesToProto(a)}
	case IssueReport:
		p.Action = &queuepb.Command_IssueReport{IssueReport: issueToProto(a)}
	case Hold:
		p.Action = &queuepb.Command_Hold{Hold: &queuepb.Hold{Id: a.ID[:], Reason: clean(a.Reason)}}
	case Release:
		p.Action = &queuepb.Command_Release{Release: &queuepb.Release{Id: a.ID[:]}}
	case Remove:
		p.Action = &queuepb.Command_Remove{Remove: &queuepb.Remove{Id: a.ID[:]}}
	case PutDomain:
		p.Action = &queuepb.Command_PutDomain{PutDomain: &queuepb.PutDomain{Domain: domainToProto(a.Domain)}}
	case RemoveDomain:
		p.Action = &queuepb.Command_RemoveDomain{RemoveDomain: &queuepb.RemoveDomain{Name: clean(string(a.Name))}}
	case ResumeDomain:
		p.Action = &queuepb.Command_ResumeDomain{ResumeDomain: &queuepb.ResumeDomain{Name: clean(string(a.Name))}}
	case FlushDomain:
		p.Action = &queuepb.Command_FlushDomain{FlushDomain: &queuepb.FlushDomain{Name: clean(string(a.Name))}}
	case ReportNextHop:
		p.Action = &queuepb.Command_ReportNextHop{ReportNextHop: &queuepb.ReportNextHop{
			Node: clean(string(a.Node)), Domain: clean(string(a.Domain)), Up: a.Up, Detail: clean(a.Detail), Refused: a.Refused,
		}}
	case RecordPolicy:
		p.Action = &queuepb.Command_RecordPolicy{RecordPolicy: &queuepb.RecordPolicy{
			Domain: clean(string(a.Domain)), Policy: a.Policy.toProto(),
		}}
	case PutSettings:
		p.Action = &queuepb.Command_PutSettings{PutSettings: &queuepb.PutSettings{Settings: settingsToProto(a.Settings)}}
	case Tick:
		p.Action = &queuepb.Command_Tick{Tick: &queuepb.Tick{ElapsedMillis: int64(a.Elapsed)}}
	case RecordStart:
		p.Action = &queuepb.Command_RecordStart{RecordStart: &queuepb.RecordStart{Server: clean(string(a.Server)), Number: a.Number}}
	default:
		return nil, fmt.Errorf("encode command %T: %w", c.Action, ErrUnknownCommand)
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode command %T: %w", c.Action, err)
	}
	return b, nil
}

// WithSettled returns an encoded command that has no settled ids with these. Command
// stays as it is.
func WithSettled(command []byte, ids []mail.QueueID) ([]byte, error) {
	// One encoding behind another is that of both together.
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(slices.Clip(command), &queuepb.Command{Settled: packIDs(ids)})
	if err != nil {
		return nil, fmt.Errorf("encode settled ids: %w", err)
	}
	return b, nil
}

func acceptToProto(a Accept) *queuepb.Accept {
	return &queuepb.Accept{
		Id:       a.Body.ID[:],
		Digest:   a.Body.Digest[:],
		Size:     int64(a.Body.Size),
		Envelope: envelopeToProto(a.Envelope),
	}
}

func issueToProto(a IssueReport) *queuepb.IssueReport {
	p := &queuepb.IssueReport{Message: a.Message[:], Kind: queuepb.ReportKind(a.Kind), Reason: clean(a.Reason)}
	for _, r := range a.Recipients {
		p.Recipients = append(p.Recipients, uint32(min(uint64(r), 1<<32-1)))
	}
	if !a.Report.Body.ID.IsZero() {
		p.Report = acceptToProto(a.Report)
	}
	return p
}

func issueFromProto(p *queuepb.IssueReport) (Action, error) {
	id, err := mail.QueueIDFromBytes(p.GetMessage())
	if err != nil {
		return nil, err
	}
	if k := p.GetKind(); k < queuepb.ReportKind_REPORT_KIND_FAILURE || k > queuepb.ReportKind_REPORT_KIND_RELAYED {
		return nil, fmt.Errorf("report of kind %d: %w", k, errUnknownField)
	}
	a := IssueReport{Message: id, Kind: ReportKind(p.GetKind()), Reason: p.GetReason()}
	for _, r := range p.GetRecipients() {
		a.Recipients = append(a.Recipients, int(r))
	}
	if p.GetReport() != nil {
		if a.Report, err = acceptFromProto(p.GetReport()); err != nil {
			return nil, err
		}
	}
	return a, known(p)
}

func (p STSPolicy) toProto() *queuepb.STSPolicy {
	return &queuepb.STSPolicy{Id: clean(p.ID), Text: clean(p.Text), FetchedMillis: p.Fetched}
}

func stsPolicyFromProto(p *queuepb.STSPolicy) (STSPolicy, error) {
	return STSPolicy{ID: p.GetId(), Text: p.GetText(), Fetched: p.GetFetchedMillis()}, known(p)
}

func outcomesToProto(r RecordOutcomes) *queuepb.RecordOutcomes {
	p := &queuepb.RecordOutcomes{Holder: clean(string(r.Holder)), Token: uint64(r.Token)}
	for _, m := range r.Messages {
		o := &queuepb.MessageOutcomes{Id: m.ID[:]}
		for _, r := range m.Recipients {
			o.Recipients = append(o.Recipients, &queuepb.RecipientOutcome{
				// A negative position becomes one that no message has.
				Recipient: uint32(min(uint64(r.Recipient), 1<<32-1)),
				Outcome:   queuepb.Outcome(r.Outcome),
				Tried:     r.Tried,
				Reply:     replyToProto(r.Reply),
				Relayed:   r.Relayed,
			})
		}
		p.Messages = append(p.Messages, o)
	}
	return p
}

// DecodeCommand reads what EncodeCommand wrote. What a newer version wrote is
// ErrUnknownCommand; anything else that cannot be read is another error. A node
// decodes what it is asked to propose before it proposes it, so that neither is
// ever in the log but by a newer version.
func DecodeCommand(b []byte) (Command, error) {
	var p queuepb.Command
	if err := proto.Unmarshal(b, &p); err != nil {
		return Command{}, fmt.Errorf("decode command: %w", err)
	}
	if v := p.GetVersion(); v == 0 || v > CommandVersion {
		return Command{}, fmt.Errorf("decode command of version %d: %w", v, ErrUnknownCommand)
	}
	c, err := commandFromProto(&p)
	if errors.Is(err, errUnknownField) {
		return Command{}, fmt.Errorf("decode command: %w: %w", ErrUnknownCommand, err)
	}
	if err != nil {
		return Command{}, fmt.Errorf("decode command: %w", err)
	}
	return c, nil
}

// MayRecordStart reports whether an encoded command may be a RecordStart, without
// decoding it: who looks for starts in a long log decodes nearly nothing. Those
// have version 2 or later, and the version, field 1, is what EncodeCommand writes
// first.
func MayRecordStart(b []byte) bool {
	return len(b) < 2 || b[0] != 1<<3 || b[1] != 1
}

func commandFromProto(p *queuepb.Command) (Command, error) {
	if err := known(p); err != nil {
		return Command{}, err
	}
	settled, err := unpackIDs(p.GetSettled())
	if err != nil {
		return Command{}, err
	}
	action, err := actionFromProto(p)
	if err != nil {
		return Command{}, err
	}
	if v := VersionOf(action); p.GetVersion() != v {
		return Command{}, fmt.Errorf("%T of version %d, want %d: %w", action, p.GetVersion(), v, errUnknownField)
	}
	return Command{Node: NodeName(p.GetNode()), Settled: settled, Action: action}, nil
}

func actionFromProto(p *queuepb.Command) (Action, error) {
	switch a := p.GetAction().(type) {
	case *queuepb.Command_Accept:
		accept, err := acceptFromProto(a.Accept)
		return accept, err
	case *queuepb.Command_Settle:
		return Settle{}, known(a.Settle)
	case *queuepb.Command_GrantLeases:
		ids, err := unpackIDs(a.GrantLeases.GetMessages())
		return GrantLeases{
			Holder:   NodeName(a.GrantLeases.GetHolder()),
			Domain:   mail.Domain(a.GrantLeases.GetDomain()),
			Messages: ids,
		}, errors.Join(err, known(a.GrantLeases))
	case *queuepb.Command_RenewLeases:
		ids, err := unpackIDs(a.RenewLeases.GetBegun())
		return RenewLeases{
			Holder:  NodeName(a.RenewLeases.GetHolder()),
			Token:   Token(a.RenewLeases.GetToken()),
			Request: RequestID{Boot: a.RenewLeases.GetRequestBoot(), Number: a.RenewLeases.GetRequestNumber()},
			Begun:   ids,
		}, errors.Join(err, known(a.RenewLeases))
	case *queuepb.Command_ExpireLeases:
		return ExpireLeases{
			Token:   Token(a.ExpireLeases.GetToken()),
			Renewal: Index(a.ExpireLeases.GetRenewal()),
		}, known(a.ExpireLeases)
	case *queuepb.Command_RecordOutcomes:
		return outcomesFromProto(a.RecordOutcomes)
	case *queuepb.Command_IssueReport:
		return issueFromProto(a.IssueReport)
	case *queuepb.Command_Hold:
		id, err := mail.QueueIDFromBytes(a.Hold.GetId())
		return Hold{ID: id, Reason: a.Hold.GetReason()}, errors.Join(err, known(a.Hold))
	case *queuepb.Command_Release:
		id, err := mail.QueueIDFromBytes(a.Release.GetId())
		return Release{ID: id}, errors.Join(err, known(a.Release))
	case *queuepb.Command_Remove:
		id, err := mail.QueueIDFromBytes(a.Remove.GetId())
		return Remove{ID: id}, errors.Join(err, known(a.Remove))
	case *queuepb.Command_PutDomain:
		d, err := domainFromProto(a.PutDomain.GetDomain())
		return PutDomain{Domain: d}, errors.Join(err, known(a.PutDomain))
	case *queuepb.Command_RemoveDomain:
		return RemoveDomain{Name: mail.Domain(a.RemoveDomain.GetName())}, known(a.RemoveDomain)
	case *queuepb.Command_ResumeDomain:
		return ResumeDomain{Name: mail.Domain(a.ResumeDomain.GetName())}, known(a.ResumeDomain)
	case *queuepb.Command_FlushDomain:
		return FlushDomain{Name: mail.Domain(a.FlushDomain.GetName())}, known(a.FlushDomain)
	case *queuepb.Command_ReportNextHop:
		return ReportNextHop{
			Node:    NodeName(a.ReportNextHop.GetNode()),
			Domain:  mail.Domain(a.ReportNextHop.GetDomain()),
			Up:      a.ReportNextHop.GetUp(),
			Detail:  a.ReportNextHop.GetDetail(),
			Refused: a.ReportNextHop.GetRefused(),
		}, known(a.ReportNextHop)
	case *queuepb.Command_RecordPolicy:
		policy, err := stsPolicyFromProto(a.RecordPolicy.GetPolicy())
		return RecordPolicy{Domain: mail.Domain(a.RecordPolicy.GetDomain()), Policy: policy}, errors.Join(err, known(a.RecordPolicy))
	case *queuepb.Command_PutSettings:
		v, err := settingsFromProto(a.PutSettings.GetSettings())
		return PutSettings{Settings: v}, errors.Join(err, known(a.PutSettings))
	case *queuepb.Command_Tick:
		return Tick{Elapsed: Millis(a.Tick.GetElapsedMillis())}, known(a.Tick)
	case *queuepb.Command_RecordStart:
		return RecordStart{Server: ServerID(a.RecordStart.GetServer()), Number: a.RecordStart.GetNumber()}, known(a.RecordStart)
	}
	// A kind that this version does not know is an unknown field, which known
	// has found; so this command has none at all.
	return nil, errors.New("no action")
}

func acceptFromProto(p *queuepb.Accept) (Accept, error) {
	id, err := mail.QueueIDFromBytes(p.GetId())
	if err != nil {
		return Accept{}, err
	}
	digest, err := mail.DigestFromBytes(p.GetDigest())
	if err != nil {
		return Accept{}, err
	}
	e, err := envelopeFromProto(p.GetEnvelope())
	if err != nil {
		return Accept{}, err
	}
	return Accept{
		Envelope: e,
		Body:     mail.BodyRef{ID: id, Digest: digest, Size: mail.ByteSize(p.GetSize())},
	}, known(p)
}

func outcomesFromProto(p *queuepb.RecordOutcomes) (Action, error) {
	if err := known(p); err != nil {
		return nil, err
	}
	r := RecordOutcomes{Holder: NodeName(p.GetHolder()), Token: Token(p.GetToken())}
	for _, m := range p.GetMessages() {
		id, err := mail.QueueIDFromBytes(m.GetId())
		if err := errors.Join(err, known(m)); err != nil {
			return nil, err
		}
		o := MessageOutcomes{ID: id}
		for _, q := range m.GetRecipients() {
			reply, err := replyFromProto(q.GetReply())
			if err := errors.Join(err, known(q)); err != nil {
				return nil, err
			}
			if q.GetOutcome() < queuepb.Outcome_OUTCOME_DELIVERED || q.GetOutcome() > queuepb.Outcome_OUTCOME_FAILED {
				return nil, fmt.Errorf("outcome %d: %w", q.GetOutcome(), errUnknownField)
			}
			o.Recipients = append(o.Recipients, RecipientOutcome{
				Recipient: int(q.GetRecipient()),
				Outcome:   Outcome(q.GetOutcome()),
				Tried:     q.GetTried(),
				Reply:     reply,
				Relayed:   q.GetRelayed(),
			})
		}
		r.Messages = append(r.Messages, o)
	}
	return r, nil
}

// EncodeResult returns a result as it is sent to the node that proposed.
func EncodeResult(r Result) []byte {
	p := &queuepb.Result{
		Verdict:        queuepb.Verdict(r.Verdict),
		Messages:       packIDs(r.Messages),
		MayStillArrive: r.MayStillArrive,
		Text:           clean(r.Text),
	}
	if !r.ID.IsZero() {
		p.Id = r.ID[:]
	}
	// It fails only for text that is not UTF-8, which clean rules out.
	b, _ := proto.MarshalOptions{Deterministic: true}.Marshal(p)
	return b
}

// DecodeResult reads what EncodeResult wrote.
func DecodeResult(b []byte) (Result, error) {
	var p queuepb.Result
	if err := proto.Unmarshal(b, &p); err != nil {
		return Result{}, fmt.Errorf("decode result: %w", err)
	}
	v := p.GetVerdict()
	if v < queuepb.Verdict_VERDICT_DONE || v > queuepb.Verdict_VERDICT_INVALID {
		return Result{}, fmt.Errorf("decode result: unknown verdict %d", v)
	}
	r := Result{Verdict: Verdict(v), MayStillArrive: p.GetMayStillArrive(), Text: p.GetText()}
	var err error
	if r.Messages, err = unpackIDs(p.GetMessages()); err != nil {
		return Result{}, fmt.Errorf("decode result: %w", err)
	}
	if len(p.GetId()) > 0 {
		if r.ID, err = mail.QueueIDFromBytes(p.GetId()); err != nil {
			return Result{}, fmt.Errorf("decode result: %w", err)
		}
	}
	return r, nil
}
