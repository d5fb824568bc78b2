package delivery

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// attemptTimeout is for one message up to its final dot: a next hop that takes
// a block just within every deadline would otherwise hold a connection for days.
const attemptTimeout = 2 * time.Hour

// openAheadTimeout is how long the dot of one message waits for the content of
// the next.
const openAheadTimeout = 50 * time.Millisecond

// The replies that stand for what the next hop did not say in words, or what we
// found ourselves. They are 4yz: the message waits, and an operator sees why.
var (
	replySMTPUTF8 = mail.Reply{Code: 450, Enhanced: mail.EnhancedCode{4, 6, 7}, Text: "next hop does not offer SMTPUTF8, which the message needs"}
	replyUnsafe   = mail.Reply{Code: 451, Enhanced: mail.EnhancedCode{4, 5, 2}, Text: "envelope is not safe on a command line"}
	replyMissing  = mail.Reply{Code: 451, Enhanced: mail.EnhancedCode{4, 3, 0}, Text: "content cannot be read on the node that tried; it is fetched from the others"}
	replyStray    = mail.Reply{Code: 451, Enhanced: mail.EnhancedCode{4, 6, 0}, Text: "content has a stray CR or LF"}
)

// A result is what became of one attempt.
type result struct {
	outcomes fsm.MessageOutcomes
	tried    bool          // something was learnt about the message
	answered bool          // the next hop replied to the final dot
	ours     bool          // if the connection is closed, we closed it
	waited   time.Duration // for the reply to the final dot
}

// An attempt is one message on its way over one connection.
type attempt struct {
	h       *hop
	domain  fsm.Domain // as it was when the connection was opened
	conn    *smtpclient.Conn
	lease   *heldLease
	message Message
	o       *outcomes
	log     *slog.Logger
	body    io.ReadSeekCloser // nil until it was opened
	trace   []byte            // with body
	// begun: its MAIL, RCPT and DATA went out behind the dot of the message
	// before. It gives the message no right and no outcome.
	begun bool
}

func (h *hop) newAttempt(conn *smtpclient.Conn, at route.Hop, d fsm.Domain, l *heldLease, m Message) *attempt {
	o := newOutcomes(m)
	o.relayed = d.Bounce == fsm.BounceAlways && !conn.Offers("DSN")
	return &attempt{
		h: h, domain: d, conn: conn, lease: l, message: m, o: o,
		log: h.a.c.Log.With("queue_id", m.ID.String(), "domain", h.name, "hop", at.String(), "token", uint64(l.token)),
	}
}

// close is called when the attempt is over, or was never made.
func (t *attempt) close() {
	if t.body != nil {
		_ = t.body.Close()
	}
}

// open opens the content, if that has not been done.
func (t *attempt) open(ctx context.Context) error {
	if t.body != nil {
		return nil
	}
	body, err := t.h.a.c.Queue.OpenBody(ctx, t.message.Body)
	if err != nil {
		return err
	}
	t.body, t.trace = body, traceFields(t.message.ID, t.message.Envelope, t.h.a.c.TraceMark)
	return nil
}

// ready reports whether the message may be begun behind the dot of the one
// before, as far as that can be known before that dot is permitted. The wait for
// content that is not here is short, since that dot waits with us; if it does not
// come in time, the message is begun in its own turn.
func (t *attempt) ready() bool {
	if len(t.o.recipients) == 0 || t.lease.may(t.message.ID) != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(t.h.a.work, openAheadTimeout)
	defer cancel()
	return t.open(ctx) == nil
}

func (t *attempt) transaction() smtpclient.Transaction {
	e := t.message.Envelope
	return smtpclient.Transaction{
		From: e.From, Recipients: t.o.recipients, Size: t.message.Body.Size + mail.ByteSize(len(t.trace)),
		EightBit: e.EightBit, SMTPUTF8: e.SMTPUTF8, Return: e.Return, EnvelopeID: e.EnvelopeID,
	}
}

// run tries the message. Next, if not nil, is begun behind its dot, where that
// can be.
func (t *attempt) run(next *attempt) result {
	h, a, conn, o, log := t.h, t.h.a, t.conn, t.o, t.log
	if err := t.lease.may(t.message.ID); err != nil || len(o.recipients) == 0 {
		if t.begun {
			conn.Abort() // The next hop may wait for content, and must not get any.
		}
		h.countGivenUp(err)
		return o.untried(true)
	}
	if err := t.open(a.work); err != nil {
		if a.work.Err() != nil {
			return o.untried(true)
		}
		a.stats.BodiesMissing.Add(1)
		log.Error("content not held here", "error", err)
		return o.unreadable()
	}
	ctx, cancel := context.WithTimeout(a.work, attemptTimeout)
	defer cancel()

	if speaksFor(conn, t.domain) {
		reply, err := conn.OnBehalf(ctx, clientOf(t.message.Envelope.Trace))
		switch {
		case err != nil:
			return t.lost(err, smtpclient.Answer{})
		case !reply.Positive():
			log.Warn("deferred: the next hop does not want the message's client", "reply", reply.String())
			r := o.all(fsm.Deferred, reply)
			r.ours = true
			return r
		}
	}
	answer, err := t.begin(ctx)
	if answer.Mail.Code != 0 && !errors.Is(err, smtpclient.ErrReply) {
		h.mailAnswered(t.message.ID, answer.Mail)
	}
	switch {
	case errors.Is(err, smtpclient.ErrSMTPUTF8):
		log.Warn("deferred", "reply", replySMTPUTF8.String())
		return o.all(fsm.Deferred, replySMTPUTF8)
	case errors.Is(err, smtpclient.ErrUnsafe):
		log.Error("deferred", "error", err)
		return o.all(fsm.Deferred, replyUnsafe)
	case err != nil:
		return t.lost(err, answer)
	case !answer.Mail.Positive():
		// Said before any recipient was named, so it is about the sender or about
		// us: a next hop that blocks our address must not fail the whole queue.
		log.Warn("deferred: MAIL refused", "reply", answer.Mail.String())
		return o.all(fsm.Deferred, answer.Mail)
	}
	o.judgeRecipients(answer.Recipients)
	if !answer.Open {
		if answer.Data.Code != 0 && answer.Data.Code != 354 {
			o.judgeAccepted(refusal(answer.Data), answer.Data)
		}
		log.Info("refused", "data", answer.Data.String(), "outcomes", o.String())
		return o.finish(false)
	}

	if err := conn.Body(ctx, t.trace, t.body); err != nil {
		switch {
		case errors.Is(err, smtpclient.ErrSource):
			a.stats.BodiesMissing.Add(1)
			log.Error("content not readable, connection closed before the dot", "error", err)
			return o.unreadable()
		case errors.Is(err, smtpclient.ErrStray):
			log.Error("content refused, connection closed before the dot", "error", err)
			r := o.all(fsm.Deferred, replyStray)
			r.ours = true
			return r
		}
		return t.lost(err, smtpclient.Answer{})
	}
	ahead := next != nil && next.ready()
	// The last look at the lease before the message may become the next hop's.
	if err := t.lease.permit(a.work, t.message.ID); err != nil {
		conn.Abort()
		h.countGivenUp(err)
		log.Warn("given up before the dot", "reason", err)
		return o.untried(true)
	}
	a.c.Failpoint.At("dot: permitted")
	sent := time.Now()
	reply, err := t.dot(next, ahead)
	waited := time.Since(sent)
	if err != nil && !errors.Is(err, smtpclient.ErrNoReply) {
		return t.lost(err, smtpclient.Answer{})
	}
	a.stats.Dots.Add(1)
	switch {
	case err != nil:
		log.Warn("in doubt: the dot was sent, no reply was read", "error", err)
		o.judgeAccepted(fsm.InDoubt, mail.Reply{})
	case reply.Positive():
		o.judgeAccepted(fsm.Delivered, reply)
		log.Info("delivered", "reply", reply.String(), "tls", conn.TLS() != nil, "outcomes", o.String())
	default:
		outcome := refusal(reply)
		if conn.PipeliningFailed() {
			outcome = fsm.Deferred // What was refused is how we spoke.
		}
		o.judgeAccepted(outcome, reply)
		log.Info("refused", "dot", reply.String(), "outcomes", o.String())
	}
	r := o.finish(err == nil)
	r.waited = waited
	return r
}

// speaksFor reports whether the next hop is told whose each message is. Over one
// connection it is told of all or of none: one of which nothing was said would come in the
// name of the client before.
func speaksFor(conn *smtpclient.Conn, d fsm.Domain) bool {
	return conn.Offers("XCLIENT") && d.XClient
}

// clientOf is who gave us a message; our own come from nobody.
func clientOf(t mail.Trace) smtpclient.Client {
	return smtpclient.Client{Address: t.Client, Hello: t.Hello, Extended: strings.HasPrefix(t.Protocol, "E") || strings.HasPrefix(t.Protocol, "UTF8")}
}

// begin says MAIL, RCPT and DATA, or reads the replies if that was said before.
func (t *attempt) begin(ctx context.Context) (smtpclient.Answer, error) {
	if t.begun {
		return t.conn.Answer(ctx)
	}
	t.h.a.stats.Attempts.Add(1)
	return t.conn.Begin(ctx, t.transaction())
}

// dot sends the final dot, and the next message's commands behind it if its
// right stands at this moment.
func (t *attempt) dot(next *attempt, ahead bool) (mail.Reply, error) {
	a := t.h.a
	if !ahead || a.work.Err() != nil || next.lease.may(next.message.ID) != nil {
		return t.conn.Dot(a.dots)
	}
	reply, begun, err := t.conn.DotAndBegin(a.dots, next.transaction())
	if begun {
		next.begun = true
		a.stats.Attempts.Add(1)
		a.stats.Pipelined.Add(1)
	}
	return reply, err
}

// lost is a connection that ended between MAIL and the dot: nobody's fault, so
// the message counts as not tried. But if it happens again with the same
// message, the message may be what ends it, and must not stand before all others
// for ever. What pipelining ended, the message did not. What was refused before
// the end has been refused, if it is known what was said to what: of refusals for good
// that of the first recipient, since the next may be the same said twice.
func (t *attempt) lost(err error, answer smtpclient.Answer) result {
	h := t.h
	if h.a.work.Err() != nil {
		return t.o.untried(true)
	}
	t.log.Warn("connection lost before the dot", "error", err)
	r := t.o.untried(false)
	if t.conn.PipeliningFailed() {
		return r
	}
	var stage *smtpclient.StageError
	var reply mail.Reply
	if errors.As(err, &stage) {
		reply = stage.Reply
	}
	h.mu.Lock()
	again := h.suspects.again(t.message.ID)
	h.mu.Unlock()
	for i := range r.outcomes.Recipients {
		r.outcomes.Recipients[i].Tried = again
		r.outcomes.Recipients[i].Reply = reply
	}
	if errors.Is(err, smtpclient.ErrReply) {
		return r
	}
	if m := answer.Mail; m.Transient() || m.Permanent() {
		return t.o.all(fsm.Deferred, m)
	}
	failed := false
	for i, reply := range answer.Recipients {
		if !reply.Transient() && !reply.Permanent() {
			continue
		}
		outcome := refusalOfRecipient(reply)
		if outcome == fsm.Failed && failed {
			continue
		}
		failed = failed || outcome == fsm.Failed
		o := &r.outcomes.Recipients[i]
		o.Outcome, o.Tried, o.Reply = outcome, true, reply
		r.tried = true
	}
	return r
}

// countGivenUp counts why a message was given up before its dot.
func (h *hop) countGivenUp(err error) {
	switch {
	case errors.Is(err, errStopped):
		h.a.stats.Stopped.Add(1)
	case errors.Is(err, errRightEnded):
		h.a.stats.RightsEnded.Add(1)
	}
}

// refusal is what a 4yz or 5yz to RCPT, DATA or the dot means. 552 to RCPT is a
// 452 in old clothes (RFC 5321 section 4.5.3.1.10), which refusalOfRecipient knows.
func refusal(r mail.Reply) fsm.Outcome {
	if !r.Permanent() {
		return fsm.Deferred
	}
	switch r.Code {
	case 500, 502, 503, 504, 555: // How we spoke, RFC 5321 section 4.2.2.
		return fsm.Deferred
	case 521, 530: // The host takes no mail, RFC 7504; not from us, not so, RFC 3207 and 4954.
		return fsm.Deferred
	}
	return fsm.Failed
}

func refusalOfRecipient(r mail.Reply) fsm.Outcome {
	if r.Code == 552 {
		return fsm.Deferred
	}
	return refusal(r)
}

// suspectsMax bounds how many messages are remembered as having been in hand
// when a connection was lost.
const suspectsMax = 64

// suspects are these messages, the oldest forgotten first.
type suspects struct{ ids []mail.QueueID }

// again reports whether id is a suspect already, and makes it one.
func (s *suspects) again(id mail.QueueID) bool {
	if slices.Contains(s.ids, id) {
		return true
	}
	if len(s.ids) == suspectsMax {
		s.ids = s.ids[1:]
	}
	s.ids = append(s.ids, id)
	return false
}
