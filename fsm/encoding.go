package fsm

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// This file holds what commands, results and snapshots share: the values of
// package mail and of this package as queuepb has them.

// errUnknownField says that a newer version wrote a message: some field of it
// means something that this version does not know.
var errUnknownField = errors.New("unknown field")

// known fails where m itself has fields that this version does not know. A
// field that is skipped on one node and obeyed on another would part the two.
func known(messages ...proto.Message) error {
	for _, m := range messages {
		if len(m.ProtoReflect().GetUnknown()) > 0 {
			return fmt.Errorf("%s: %w", m.ProtoReflect().Descriptor().Name(), errUnknownField)
		}
	}
	return nil
}

// clean makes a text valid UTF-8, which a protobuf string must be.
func clean(s string) string { return strings.ToValidUTF8(s, "?") }

func packIDs(ids []mail.QueueID) []byte {
	if len(ids) == 0 {
		return nil
	}
	b := make([]byte, 0, len(ids)*len(mail.QueueID{}))
	for _, id := range ids {
		b = append(b, id[:]...)
	}
	return b
}

func unpackIDs(b []byte) ([]mail.QueueID, error) {
	const size = len(mail.QueueID{})
	if len(b)%size != 0 {
		return nil, fmt.Errorf("queue ids of %d bytes", len(b))
	}
	if len(b) == 0 {
		return nil, nil
	}
	ids := make([]mail.QueueID, len(b)/size)
	for i := range ids {
		copy(ids[i][:], b[i*size:])
	}
	return ids, nil
}

func envelopeToProto(e mail.Envelope) *queuepb.Envelope {
	p := &queuepb.Envelope{
		Recipients: make([]*queuepb.Recipient, len(e.Recipients)),
		Return:     queuepb.Return(e.Return),
		EnvelopeId: clean(e.EnvelopeID),
		EightBit:   e.EightBit,
		Smtputf8:   e.SMTPUTF8,
		Trace: &queuepb.Trace{
			Hello:    clean(e.Trace.Hello),
			Node:     clean(e.Trace.Node),
			Protocol: clean(e.Trace.Protocol),
			Tls:      clean(e.Trace.TLS),
			Received: e.Trace.Received,
		},
	}
	if !e.From.IsNull() {
		p.From = &queuepb.Mailbox{Local: clean(e.From.Local), Host: clean(e.From.Host)}
	}
	if e.Trace.Client.IsValid() {
		p.Trace.Client, _ = e.Trace.Client.MarshalBinary() // never fails
	}
	for i, r := range e.Recipients {
		p.Recipients[i] = &queuepb.Recipient{
			Local:    clean(r.Path.Local),
			Host:     clean(r.Path.Host),
			Notify:   uint32(r.Notify),
			Original: clean(r.Original),
		}
		if string(r.Domain) != r.Path.Host {
			p.Recipients[i].Domain = proto.String(clean(string(r.Domain)))
		}
	}
	return p
}

func envelopeFromProto(p *queuepb.Envelope) (mail.Envelope, error) {
	if p == nil {
		return mail.Envelope{}, errors.New("no envelope")
	}
	trace := p.GetTrace()
	if err := known(p, p.GetFrom(), trace); err != nil {
		return mail.Envelope{}, err
	}
	if r := p.GetReturn(); r < 0 || r > queuepb.Return_RETURN_HEADERS {
		return mail.Envelope{}, fmt.Errorf("RET %d: %w", r, errUnknownField)
	}
	e := mail.Envelope{
		From:       mail.ReversePath{Mailbox: mail.Mailbox{Local: p.GetFrom().GetLocal(), Host: p.GetFrom().GetHost()}},
		Return:     mail.Return(p.GetReturn()),
		EnvelopeID: p.GetEnvelopeId(),
		EightBit:   p.GetEightBit(),
		SMTPUTF8:   p.GetSmtputf8(),
		Trace: mail.Trace{
			Hello:    trace.GetHello(),
			Node:     trace.GetNode(),
			Protocol: trace.GetProtocol(),
			TLS:      trace.GetTls(),
			Received: trace.GetReceived(),
		},
	}
	if c := trace.GetClient(); len(c) > 0 {
		var a netip.Addr
		if err := a.UnmarshalBinary(c); err != nil {
			return mail.Envelope{}, fmt.Errorf("client address: %w", err)
		}
		e.Trace.Client = a
	}
	if n := len(p.GetRecipients()); n > 0 {
		e.Recipients = make([]mail.Recipient, n)
	}
	for i, r := range p.GetRecipients() {
		if err := known(r); err != nil {
			return mail.Envelope{}, err
		}
		if r.GetNotify() >= 2*uint32(mail.NotifyDelay) {
			return mail.Envelope{}, fmt.Errorf("NOTIFY %d: %w", r.GetNotify(), errUnknownField)
		}
		e.Recipients[i] = mail.Recipient{
			Path:     mail.ForwardPath{Mailbox: mail.Mailbox{Local: r.GetLocal(), Host: r.GetHost()}},
			Domain:   mail.Domain(r.GetHost()),
			Notify:   mail.Notify(r.GetNotify()),
			Original: r.GetOriginal(),
		}
		if r.Domain != nil {
			e.Recipients[i].Domain = mail.Domain(r.GetDomain())
		}
	}
	return e, nil
}

func replyToProto(r mail.Reply) *queuepb.Reply {
	if r == (mail.Reply{}) {
		return nil
	}
	return &queuepb.Reply{
		Code:    uint32(code(r.Code)),
		Class:   uint32(code(r.Enhanced[0])),
		Subject: uint32(code(r.Enhanced[1])),
		Detail:  uint32(code(r.Enhanced[2])),
		Text:    clean(r.Text),
	}
}

// replyFromProto returns the zero Reply for nil.
func replyFromProto(p *queuepb.Reply) (mail.Reply, error) {
	if err := known(p); err != nil {
		return mail.Reply{}, err
	}
	return mail.Reply{
		Code: smallInt(p.GetCode()),
		Enhanced: mail.EnhancedCode{
			smallInt(p.GetClass()), smallInt(p.GetSubject()), smallInt(p.GetDetail()),
		},
		Text: p.GetText(),
	}, nil
}

// smallInt is code for numbers that were read: zero for what is no SMTP code.
func smallInt(n uint32) int {
	if n > 999 {
		return 0
	}
	return int(n)
}

func domainToProto(d Domain) *queuepb.RelayDomain {
	p := &queuepb.RelayDomain{Name: clean(string(d.Name)), Mx: d.MX}
	for _, t := range d.Targets {
		p.Targets = append(p.Targets, &queuepb.Target{Host: clean(t.Host), Port: uint32(t.Port)})
	}
	if c := d.Schedule; c != (Schedule{}) {
		p.Schedule = &queuepb.Schedule{
			RetryMinMillis: int64(c.RetryMin), RetryMaxMillis: int64(c.RetryMax), LifetimeMillis: int64(c.Lifetime),
		}
	}
	p.ConnectionsMax = uint32(d.ConnectionsMax)
	p.Bounce, p.DelayWarningMillis, p.Xclient = queuepb.BouncePolicy(d.Bounce), int64(d.DelayWarning), d.XClient
	for _, n := range d.ETRN {
		p.EtrnNetworks = append(p.EtrnNetworks, n.String())
	}
	p.OnDemand, p.CallerUser, p.CallerSecret = d.OnDemand, clean(d.Callers.User), clean(string(d.Callers.Secret))
	for _, pin := range d.Callers.Pins {
		p.CallerPins = append(p.CallerPins, pin[:])
	}
	if t := d.TLS; !t.equal(TLSPolicy{}) {
		p.Tls = &queuepb.TLSPolicy{Mode: queuepb.TLSMode(t.Mode), Authorities: clean(t.Authorities)}
		for _, pin := range t.Pins {
			p.Tls.Pins = append(p.Tls.Pins, pin[:])
		}
		for _, n := range t.Names {
			p.Tls.Names = append(p.Tls.Names, clean(n))
		}
	}
	return p
}

func domainFromProto(p *queuepb.RelayDomain) (Domain, error) {
	c, t := p.GetSchedule(), p.GetTls()
	if err := known(p, c, t); err != nil {
		return Domain{}, err
	}
	if m := t.GetMode(); m < 0 || m > queuepb.TLSMode(TLSMTASTS) {
		return Domain{}, fmt.Errorf("TLS mode %d: %w", m, errUnknownField)
	}
	if b := p.GetBounce(); b < 0 || b > queuepb.BouncePolicy(BounceAlways) {
		return Domain{}, fmt.Errorf("bounce policy %d: %w", b, errUnknownField)
	}
	d := Domain{
		Name: mail.Domain(p.GetName()), MX: p.GetMx(), ConnectionsMax: int(p.GetConnectionsMax()),
		Schedule: Schedule{Millis(c.GetRetryMinMillis()), Millis(c.GetRetryMaxMillis()), Millis(c.GetLifetimeMillis())},
		Bounce:   BouncePolicy(p.GetBounce()), DelayWarning: Millis(p.GetDelayWarningMillis()), XClient: p.GetXclient(),
	}
	for _, t := range p.GetTargets() {
		if err := known(t); err != nil {
			return Domain{}, err
		}
		if t.GetPort() > 1<<16-1 {
			return Domain{}, fmt.Errorf("port %d", t.GetPort())
		}
		d.Targets = append(d.Targets, Target{Host: t.GetHost(), Port: uint16(t.GetPort())})
	}
	for _, text := range p.GetEtrnNetworks() {
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return Domain{}, err
		}
		d.ETRN = append(d.ETRN, n)
	}
	d.TLS = TLSPolicy{Mode: TLSMode(t.GetMode()), Authorities: t.GetAuthorities(), Names: t.GetNames()}
	for _, pin := range t.GetPins() {
		if len(pin) != 32 {
			return Domain{}, fmt.Errorf("pin of %d bytes", len(pin))
		}
		d.TLS.Pins = append(d.TLS.Pins, [32]byte(pin))
	}
	d.OnDemand = p.GetOnDemand()
	d.Callers.User, d.Callers.Secret = p.GetCallerUser(), PasswordHash(p.GetCallerSecret())
	for _, pin := range p.GetCallerPins() {
		if len(pin) != 32 {
			return Domain{}, fmt.Errorf("pin of %d bytes", len(pin))
		}
		d.Callers.Pins = append(d.Callers.Pins, [32]byte(pin))
	}
	return d, nil
}

func settingsToProto(v Settings) *queuepb.Settings {
	return &queuepb.Settings{
		DoubtWaitMillis:       int64(v.DoubtWait),
		FingerprintLifeMillis: int64(v.FingerprintLife),
		FingerprintMax:        int64(v.FingerprintMax),
		RecordLifeMillis:      int64(v.RecordLife),
		RetryMinMillis:        int64(v.RetryMin),
		RetryMaxMillis:        int64(v.RetryMax),
		Voters:                int64(v.Voters),
		WaitsPerEntry:         int64(v.WaitsPerEntry),
	}
}

func settingsFromProto(p *queuepb.Settings) (Settings, error) {
	if err := known(p); err != nil {
		return Settings{}, err
	}
	return Settings{
		DoubtWait:       Millis(p.GetDoubtWaitMillis()),
		FingerprintLife: Millis(p.GetFingerprintLifeMillis()),
		FingerprintMax:  int(p.GetFingerprintMax()),
		RecordLife:      Millis(p.GetRecordLifeMillis()),
		RetryMin:        Millis(p.GetRetryMinMillis()),
		RetryMax:        Millis(p.GetRetryMaxMillis()),
		Voters:          int(p.GetVoters()),
		WaitsPerEntry:   int(p.GetWaitsPerEntry()),
	}, nil
}
