package smtpd

import (
	"errors"
	"fmt"

	"github.com/emersion/go-smtp"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// This file is the only one that says what an error, or a refused argument, is
// answered. (What concerns the connection and the order of commands is
// answered by the gate.) Whatever is not certain is 4yz: a backup that refuses
// for good loses mail that the primary would have taken.

func reply(code, class, subject, detail int, text string) mail.Reply {
	return mail.Reply{Code: code, Enhanced: mail.EnhancedCode{class, subject, detail}, Text: text}
}

// replies to arguments of MAIL and RCPT.
func replySenderSyntax() mail.Reply { return reply(501, 5, 1, 7, "Malformed sender address") }
func replyRecipientSyntax() mail.Reply {
	return reply(501, 5, 1, 3, "Malformed recipient address")
}
func replyNeedsUTF8() mail.Reply {
	return reply(553, 5, 6, 7, "Address needs SMTPUTF8") // RFC 6531 section 3.5
}
func replyNoRelay() mail.Reply { return reply(550, 5, 7, 1, "Relaying denied") }
func replyBadParameter() mail.Reply {
	return reply(501, 5, 5, 4, "Malformed parameter")
}
func replyDuplicateParameter() mail.Reply {
	return reply(501, 5, 5, 4, "Parameter given twice")
}
func replyUnknownParameter() mail.Reply {
	return reply(555, 5, 5, 4, "Parameter not recognized") // RFC 5321 section 4.1.1.11
}
func replyTooManyRecipients() mail.Reply { return reply(452, 4, 5, 3, "Too many recipients") }
func replyTooLarge() mail.Reply          { return reply(552, 5, 3, 4, "Message too large") } // RFC 1870 section 6.1

// replies to ETRN (RFC 1985 section 5.3).
func replyTurnOption() mail.Reply {
	return reply(501, 5, 5, 4, "Neither subdomains nor named queues: ETRN takes a domain")
}
func replyTurnSyntax() mail.Reply { return reply(501, 5, 5, 4, "Malformed domain") }

// A domain that is not ours and a client that may not ask are answered alike.
func replyTurnRefused(d mail.Domain) mail.Reply {
	return reply(459, 4, 7, 1, "Node "+string(d)+" not allowed")
}
func replyTurnFailed(d mail.Domain) mail.Reply {
	return reply(458, 4, 3, 0, "Unable to queue messages for node "+string(d))
}
func replyTurn(d mail.Domain, t Turned) mail.Reply {
	switch {
	case t.Uncounted:
		return reply(252, 2, 0, 0, "OK, pending messages for node "+string(d)+" started")
	case t.Waiting == 0:
		return reply(251, 2, 0, 0, "OK, no messages waiting for node "+string(d))
	case t.Underway:
		return reply(250, 2, 0, 0, "OK, queuing for node "+string(d)+" started")
	}
	return reply(253, 2, 0, 0, fmt.Sprintf("OK, %d pending messages for node %s started", t.Waiting, d))
}

// replies to messages.
func replyLoop() mail.Reply     { return reply(554, 5, 4, 6, "Too many hops") }
func replyLine() mail.Reply     { return reply(554, 5, 6, 0, "Line too long") }
func replyMemory() mail.Reply   { return reply(452, 4, 3, 1, "Too much mail at once, try again later") }
func replyAborted() mail.Reply  { return reply(451, 4, 3, 0, "Message incomplete") } // Never seen: the connection is gone.
func replyInternal() mail.Reply { return reply(421, 4, 3, 0, "Internal error, closing") }
func replyTryAgain() mail.Reply { return reply(451, 4, 3, 0, "Cannot take mail now, try again later") }
func replyDiskLow() mail.Reply {
	return reply(452, 4, 3, 1, "Insufficient storage, try again later")
}
func replyQueued(id mail.QueueID) mail.Reply { return reply(250, 2, 0, 0, "queued as "+id.String()) }

// replyNotReady answers a Queue that is not ready, at MAIL, RCPT or DATA.
func replyNotReady(err error) mail.Reply {
	if errors.Is(err, ErrDiskLow) {
		return replyDiskLow()
	}
	return replyTryAgain()
}

// greetingNotReady is the same in place of the greeting, where 421 is the only
// temporary refusal there is (RFC 5321 section 4.3.2).
func greetingNotReady(err error) mail.Reply {
	r := replyNotReady(err)
	if r.Enhanced == replyTryAgain().Enhanced {
		r.Enhanced = mail.EnhancedCode{4, 3, 2}
	}
	r.Code = 421
	return r
}

// replySender answers an error of mail.ParseReversePath.
func replySender(err error) mail.Reply {
	if errors.Is(err, mail.ErrAddressUTF8) {
		return replyNeedsUTF8()
	}
	return replySenderSyntax()
}

// replyRecipient answers an error of mail.ParseForwardPath.
func replyRecipient(err error) mail.Reply {
	switch {
	case errors.Is(err, mail.ErrAddressUTF8):
		return replyNeedsUTF8()
	case errors.Is(err, mail.ErrAddressRouting), errors.Is(err, mail.ErrAddressLiteral):
		return replyNoRelay()
	}
	return replyRecipientSyntax()
}

// replySubmit answers an error of Queue.Submit. Without an answer (false) the
// connection is to be closed in silence. Unknown is sticky: an error that also
// says so is unknown.
func replySubmit(err error) (mail.Reply, bool) {
	switch {
	case errors.Is(err, ErrOutcomeUnknown):
		return mail.Reply{}, false
	case errors.Is(err, ErrTooManyRecipients):
		return replyTooManyRecipients(), true
	case errors.Is(err, ErrDiskLow):
		return replyDiskLow(), true
	case errors.Is(err, ErrNotAccepted):
		return replyTryAgain(), true
	}
	return mail.Reply{}, false
}

// toSMTP gives a reply to go-smtp, which wants an error for it.
func toSMTP(r mail.Reply) *smtp.SMTPError {
	return &smtp.SMTPError{Code: r.Code, EnhancedCode: smtp.EnhancedCode(r.Enhanced), Message: r.Text}
}
