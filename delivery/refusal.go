package delivery

import (
	"errors"
	"slices"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// refusedMax is for how many messages, one after the other, MAIL is refused for good
// before that is the next hop's view of us. Of fewer it may be their senders.
const refusedMax = 3

// barredEvery is how often a node that alone is refused looks again where it has
// nothing to deliver, so that its alarm ends.
const barredEvery = time.Minute

// A reception is how a next hop receives us: what it refuses before it was told of a
// recipient is held against no message, so somebody must hear of it. Its methods
// return what RefusedAlarm is to be told, if tell says so.
type reception struct {
	// barred says that our last connection was refused, before any message.
	barred bool
	// refused are the messages whose MAIL got a 5yz since one got a 2yz.
	//
	// Invariant: at most refusedMax, each once.
	refused []mail.QueueID
}

// connected says that EHLO was taken. That ends no refusal of MAIL.
func (r *reception) connected() (tell bool) {
	r.barred = false
	return len(r.refused) < refusedMax
}

// mail takes the reply to a message's MAIL. A 4yz says nothing, nor does 552, which
// is about the message's size (RFC 1870 section 6.1).
func (r *reception) mail(id mail.QueueID, reply mail.Reply) (refusal *smtpclient.StageError, tell bool) {
	switch {
	case reply.Positive():
		tell = len(r.refused) >= refusedMax
		r.refused = nil
	case reply.Permanent() && reply.Code != 552:
		if len(r.refused) < refusedMax && !slices.Contains(r.refused, id) {
			r.refused = append(r.refused, id)
		}
		if len(r.refused) >= refusedMax {
			return &smtpclient.StageError{Stage: smtpclient.StageMail, Reply: reply}, true
		}
	}
	return nil, tell
}

// refusesUs returns the refusal where a conversation could not be begun because the
// next hop did not want to: it answers, and so is not just away.
func refusesUs(err error) *smtpclient.StageError {
	var e *smtpclient.StageError
	if !errors.As(err, &e) {
		return nil
	}
	switch {
	case (e.Stage == smtpclient.StageBanner || e.Stage == smtpclient.StageHello) && (e.Reply.Transient() || e.Reply.Permanent()):
		return e
	case e.Stage == smtpclient.StageStartTLS && e.Reply.Code == 421: // What else it says there is about TLS.
		return e
	}
	return nil
}

// A barredError is why no next hop could be connected to, where one of them answered.
type barredError struct {
	refusal *smtpclient.StageError // what that one said
	all     error                  // what became of each
}

func (e *barredError) Error() string { return e.all.Error() }

func (e *barredError) Unwrap() error { return e.all }

// missed takes why connect failed. With so many connections as the next hop allows the
// next one is refused: that is no news of it but to the leader, who then has us make
// fewer.
func (h *hop) missed(err error, probe bool) {
	var refused *barredError
	saw := Missed
	h.mu.Lock()
	beside, token := h.connected > 0, h.lastToken
	if errors.As(err, &refused) && !beside {
		saw = Barred
		h.reception.barred = true
	}
	h.mu.Unlock()
	if refused != nil && !probe {
		_, _ = h.pull(0, Feedback{Token: token, Lost: true}) // a hint
	}
	switch {
	case refused != nil && beside:
		return
	case saw == Barred:
		h.a.c.RefusedAlarm(h.name, refused.refusal)
	}
	h.report(saw, err.Error())
}

// welcomed notes that a conversation was begun.
func (h *hop) welcomed() {
	h.mu.Lock()
	tell := h.reception.connected()
	h.mu.Unlock()
	if tell {
		h.a.c.RefusedAlarm(h.name, nil)
	}
}

// mailAnswered notes what was said to the MAIL of a message.
func (h *hop) mailAnswered(id mail.QueueID, reply mail.Reply) {
	h.mu.Lock()
	refusal, tell := h.reception.mail(id, reply)
	h.mu.Unlock()
	if tell {
		h.a.c.RefusedAlarm(h.name, refusal)
	}
}
