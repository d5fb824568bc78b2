package smtpclient

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Pipelining across transactions (RFC 2920 section 3.1 allows content to be the
// first of a group): the next MAIL, RCPT and DATA stand behind a final dot, so
// that a message costs one turn. What must not come of it:
//
//   - A dot too many. The dot of the next message goes out only after the reply
//     to the dot before it and one reply to each command between them were read,
//     with nothing behind the 354. Until then the peer has no more than an
//     envelope.
//   - Something other than content behind a 354. A connection with such a
//     transaction is only ever gone on with, or closed.
//   - A refusal that was not meant. There are peers, and firewalls before them,
//     that offer PIPELINING and lose, or take for something else, what stands
//     behind a dot. A refusal is believed, as others are, where pipelining has
//     been seen to work on this connection, else it is asked for again; a
//     complaint about the conversation ends it.

// A pending is a transaction of which the first commands were sent behind a dot.
type pending struct {
	transaction Transaction
	asked, rest []command
}

// DotAndBegin does what Dot does; reply and err are the dot's alone. Where the
// peer offers PIPELINING, MAIL, RCPT and DATA of the next transaction go out
// behind the dot, in the same write. Begun reports that they did and that the
// connection is open: then nothing but Answer, Abort or Quit may follow. Where it
// is false, the next transaction was not tried.
//
// With a 5yz reply, PipeliningFailed may be true: then what the peer refuses is
// how it was spoken to, and not the message.
func (c *Conn) DotAndBegin(ctx context.Context, next Transaction) (reply mail.Reply, begun bool, err error) {
	var ahead *pending
	if c.Offers("PIPELINING") {
		if commands, err := c.commands(next); err == nil { // Else Begin will say why.
			ahead = &pending{transaction: next}
			ahead.asked, ahead.rest = c.cut(commands)
		}
	}
	reply, err = c.dot(ctx, ahead)
	return reply, err == nil && c.dead == nil && c.ahead != nil, err
}

// Answer takes a transaction that DotAndBegin began to where Begin takes one,
// with the same results.
func (c *Conn) Answer(ctx context.Context) (Answer, error) {
	p := c.ahead
	if p == nil || c.dead != nil {
		return Answer{}, c.broken(StageMail, fmt.Errorf("%w: no transaction was begun", ErrClosed))
	}
	c.ahead = nil
	end := c.guard(ctx)
	defer end()
	answer := Answer{Recipients: make([]mail.Reply, len(p.transaction.Recipients))}
	err := c.converse(p.asked, p.rest, &answer)
	if err == nil {
		err = c.complaint(answer)
	}
	if err == nil {
		err = c.answered(answer)
	}
	if err != nil {
		answer.Open = false
		return answer, err
	}
	if !answer.Open && c.pipelines {
		err = c.confirm(answer)
	}
	if err == nil {
		c.aheadOut = false
	}
	switch {
	case answer.Open:
		c.pipelines = true
	case !c.pipelines:
		return c.Begin(ctx, p.transaction)
	}
	return answer, err
}

// PipeliningFailed reports that the connection ended, with commands out behind a
// dot, as it does with a peer that cannot take them there: it fell silent, it
// said what is no answer to them, or they were the first of this connection. The
// same peer is better spoken to without DotAndBegin for a while.
func (c *Conn) PipeliningFailed() bool { return c.strayed }

// suspicious tells what PipeliningFailed means from a peer that went away.
func (c *Conn) suspicious(e *StageError) bool {
	switch {
	case errors.Is(e.Err, net.ErrClosed), errors.Is(e.Err, ErrClosed):
		return false // We ended it ourselves.
	case !c.pipelines:
		return true
	}
	var silent net.Error
	return errors.As(e.Err, &silent) && silent.Timeout() || errors.Is(e.Err, ErrReply)
}

// complaint ends a conversation in which the peer has, or may have, seen other
// commands than were sent, or in another order. Behind a refusal, 503 is what the
// other commands must get.
func (c *Conn) complaint(a Answer) error {
	say := func(stage Stage, r mail.Reply) error {
		return c.fail(&StageError{Stage: stage, Reply: r, Err: fmt.Errorf("%w: to what was pipelined", ErrReply)})
	}
	switch {
	case complains(a.Mail):
		return say(StageMail, a.Mail)
	case !a.Mail.Positive():
		return nil
	}
	for _, r := range a.Recipients {
		// Not by its enhanced code: large hosts say 550 5.5.0 of unknown users.
		if complains(mail.Reply{Code: r.Code}) {
			return say(StageRecipient, r)
		}
	}
	if a.taken() && complains(a.Data) {
		return say(StageData, a.Data)
	}
	return nil
}

// complains reports a reply about the conversation, not about mail: 500, 502 and
// 503 of RFC 5321 section 4.2.2, and X.5.0 to X.5.2 of RFC 3463 section 3.6, which
// come with 554 where a server says that it was spoken to out of turn.
func complains(r mail.Reply) bool {
	return r.Code == 500 || r.Code == 502 || r.Code == 503 ||
		r.Permanent() && r.Enhanced[0] == 5 && r.Enhanced[1] == 5 && r.Enhanced[2] <= 2
}
