package delivery

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// attemptTimeout is for one message up to its final dot: a next hop that takes
// a block just within every deadline would otherwise hold a connection for days.
const attemptTimeout = 2 * time.Hour

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

// attempt tries one message over an open connection.
func (h *hop) attempt(conn *smtpclient.Conn, at route.Hop, l *heldLease, m Message) result {
	a := h.a
	log := a.c.Log.With("queue_id", m.ID.String(), "domain", h.name, "hop", at.String(), "token", uint64(l.token))
	o := newOutcomes(m)
	if err := l.may(m.ID); err != nil || len(o.recipients) == 0 {
		h.countGivenUp(err)
		return o.untried(true)
	}
	body, err := a.c.Queue.OpenBody(a.work, m.Body)
	if err != nil {
		if a.work.Err() != nil {
			return o.untried(true)
		}
		a.stats.BodiesMissing.Add(1)
		log.Error("content not held here", "error", err)
		return o.unreadable()
	}
	defer body.Close()
	trace := traceFields(m.ID, m.Envelope, a.c.TraceMark)
	ctx, cancel := context.WithTimeout(a.work, attemptTimeout)
	defer cancel()

	a.stats.Attempts.Add(1)
	answer, err := conn.Begin(ctx, smtpclient.Transaction{
		From: m.Envelope.From, Recipients: o.recipients, Size: m.Body.Size + mail.ByteSize(len(trace)),
		EightBit: m.Envelope.EightBit, SMTPUTF8: m.Envelope.SMTPUTF8,
		Return: m.Envelope.Return, EnvelopeID: m.Envelope.EnvelopeID,
	})
	switch {
	case errors.Is(err, smtpclient.ErrSMTPUTF8):
		log.Warn("deferred", "reply", replySMTPUTF8.String())
		return o.all(fsm.Deferred, replySMTPUTF8)
	case errors.Is(err, smtpclient.ErrUnsafe):
		log.Error("deferred", "error", err)
		return o.all(fsm.Deferred, replyUnsafe)
	case err != nil:
		return h.lost(o, m.ID, log.Warn, err)
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

	if err := conn.Body(ctx, trace, body); err != nil {
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
		return h.lost(o, m.ID, log.Warn, err)
	}
	// The last look at the lease before the message may become the next hop's.
	if err := l.permit(a.work, m.ID); err != nil {
		conn.Abort()
		h.countGivenUp(err)
		log.Warn("given up before the dot", "reason", err)
		return o.untried(true)
	}
	sent := time.Now()
	reply, err := conn.Dot(a.dots)
	waited := time.Since(sent)
	if err != nil && !errors.Is(err, smtpclient.ErrNoReply) {
		return h.lost(o, m.ID, log.Warn, err)
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
		o.judgeAccepted(refusal(reply), reply)
		log.Info("refused", "dot", reply.String(), "outcomes", o.String())
	}
	r := o.finish(err == nil)
	r.waited = waited
	return r
}

// lost is a connection that ended between MAIL and the dot: nobody's fault, so
// the message counts as not tried. But if it happens again with the same
// message, the message may be what ends it, and must not stand before all others
// for ever.
func (h *hop) lost(o *outcomes, id mail.QueueID, warn func(string, ...any), err error) result {
	if h.a.work.Err() != nil {
		return o.untried(true)
	}
	warn("connection lost before the dot", "error", err)
	var stage *smtpclient.StageError
	var reply mail.Reply
	if errors.As(err, &stage) {
		reply = stage.Reply
	}
	r := o.untried(false)
	h.mu.Lock()
	again := h.suspects.again(id)
	h.mu.Unlock()
	for i := range r.outcomes.Recipients {
		r.outcomes.Recipients[i].Tried = again
		r.outcomes.Recipients[i].Reply = reply
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

// refusal is what a 4yz or 5yz to RCPT, DATA or the dot means. Complaints about
// the conversation (RFC 5321 section 4.2.2: 500, 502, 503) are no verdict on
// mail, and 552 to RCPT is a 452 in old clothes (section 4.5.3.1.10), which
// refusalOfRecipient knows.
func refusal(r mail.Reply) fsm.Outcome {
	if !r.Permanent() || r.Code == 500 || r.Code == 502 || r.Code == 503 {
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
