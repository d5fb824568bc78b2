package sender

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
)

// A transaction is one attempt of one letter for those of its recipients that
// have no final answer yet.
type transaction struct {
	c          *conversation
	o          *Options
	count      func(func(*Stats))
	letter     *letter.Letter
	number     int
	target     string
	recipients []string
}

// run returns the recipients that must be tried again. err is why, or
// errRecord.
func (t *transaction) run(ctx context.Context) (left []string, err error) {
	taken, left, err := t.envelope()
	if err != nil {
		return left, err
	}
	if len(taken) == 0 {
		// Else the next letter's MAIL would stand within this transaction.
		if _, err := t.c.command("RSET"); err != nil {
			return left, fmt.Errorf("rset: %w", err)
		}
		return left, nil
	}
	r, err := t.c.command("DATA")
	if err != nil {
		return append(left, taken...), fmt.Errorf("data: %w", err)
	}
	if r.code != 354 {
		return t.refused(left, taken, r)
	}
	t.c.conn.SetDeadline(time.Now().Add(contentTime))
	if err := t.letter.WriteData(t.c.out); err != nil {
		return append(left, taken...), fmt.Errorf("content: %w", err)
	}
	if err := t.c.out.Flush(); err != nil {
		return append(left, taken...), fmt.Errorf("content: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return append(left, taken...), err
	}
	return t.dot(left, taken)
}

// dot writes the final dot and waits for its reply. Until the dot is written
// the server cannot have taken anything; from there on nobody can know
// without a reply.
func (t *transaction) dot(left, taken []string) ([]string, error) {
	err := record(t.o.Record.Intent(ledger.Intent{
		ID: t.letter.ID, Attempt: t.number, ReversePath: t.letter.ReversePath, Recipients: taken,
		Octets: t.letter.Octets(), Target: t.target, Notify: t.letter.Notify, Automatic: t.letter.Automatic, At: time.Now(),
	}))
	if err != nil {
		return nil, err
	}
	begin := time.Now()
	t.c.conn.SetDeadline(begin.Add(t.o.ReplyTime))
	t.c.out.WriteString(".\r\n")
	err = t.c.out.Flush()
	var r reply
	// Even when the write failed there may be a reply to read.
	if r, err = readAfter(t.c, begin, err); err != nil {
		t.count(func(s *Stats) { s.NoReply += len(taken) })
		if rerr := t.outcome(taken, ledger.Info, reply{}, err.Error()); rerr != nil {
			return nil, rerr
		}
		return append(left, taken...), fmt.Errorf("no reply to the dot: %w", err)
	}
	if r.class() != 2 {
		return t.refused(left, taken, r)
	}
	took := time.Since(begin)
	if err := t.outcome(taken, ledger.OK, r, r.String()); err != nil {
		return nil, err
	}
	t.count(func(s *Stats) {
		s.Letters++
		s.Pairs += len(taken)
		s.Octets += t.letter.Octets().Size
		s.Accepted[t.target] += len(taken)
		s.Dot.add(took)
	})
	return left, nil
}

func readAfter(c *conversation, from time.Time, writeErr error) (reply, error) {
	r, err := c.await("the final dot", from)
	if err != nil {
		return r, errors.Join(writeErr, err)
	}
	return r, nil
}

// envelope says MAIL and RCPT, in one packet where that is allowed (RFC 2920).
func (t *transaction) envelope() (taken, left []string, err error) {
	mail := "MAIL FROM:<" + t.letter.ReversePath + ">"
	if t.c.offers["SIZE"] {
		mail += fmt.Sprintf(" SIZE=%d", t.letter.Octets().Size)
	}
	if t.letter.EightBit && t.c.offers["8BITMIME"] {
		mail += " BODY=8BITMIME"
	}
	if t.letter.UTF8 && t.c.offers["SMTPUTF8"] {
		mail += " SMTPUTF8"
	}
	lines := []string{mail}
	for _, r := range t.recipients {
		line := "RCPT TO:<" + r + ">"
		if t.letter.Notify != "" && t.c.offers["DSN"] {
			line += " NOTIFY=" + t.letter.Notify
		}
		lines = append(lines, line)
	}
	replies, err := t.c.batch(lines)
	if err != nil {
		return nil, t.recipients, fmt.Errorf("envelope: %w", err)
	}
	if replies[0].class() != 2 {
		left, err = t.refused(nil, t.recipients, replies[0])
		return nil, left, err
	}
	for i, recipient := range t.recipients {
		r := replies[i+1]
		if r.class() == 2 {
			taken = append(taken, recipient)
			continue
		}
		var why error
		left, why = t.refused(left, []string{recipient}, r)
		if errors.Is(why, errRecord) {
			return nil, nil, why
		}
	}
	return taken, left, nil
}

// batch says lines and reads a reply for each.
func (c *conversation) batch(lines []string) ([]reply, error) {
	c.conn.SetDeadline(time.Now().Add(c.patience))
	replies := make([]reply, 0, len(lines))
	for i, line := range lines {
		c.out.WriteString(line + "\r\n")
		if c.offers["PIPELINING"] && i < len(lines)-1 {
			continue
		}
		if err := c.out.Flush(); err != nil {
			return nil, err
		}
		for len(replies) <= i {
			// The server begins with a command when it has done with the one before.
			r, err := c.await(verb(lines[len(replies)]), time.Now())
			if err != nil {
				return nil, err
			}
			replies = append(replies, r)
		}
	}
	return replies, nil
}

// refused records a 4yz or 5yz for recipients. Those with a 4yz join left.
func (t *transaction) refused(left, recipients []string, r reply) ([]string, error) {
	if err := t.outcome(recipients, ledger.Fail, r, r.String()); err != nil {
		return nil, err
	}
	if r.class() == 5 {
		t.count(func(s *Stats) { s.Refused += len(recipients) })
		t.o.Logger.Warn("refused", "id", t.letter.ID, "recipients", recipients, "reply", r, "shape", t.letter.Shape)
		return left, nil
	}
	t.count(func(s *Stats) { s.Deferred += len(recipients) })
	return append(left, recipients...), fmt.Errorf("deferred: %v", r)
}

func (t *transaction) outcome(recipients []string, result ledger.Result, r reply, text string) error {
	o := ledger.Outcome{
		ID: t.letter.ID, Attempt: t.number, Recipients: recipients, Result: result, Reply: text, At: time.Now(),
	}
	if result == ledger.OK {
		o.QueueID = queueID(r.text)
	}
	return record(t.o.Record.Outcome(o))
}

// queueID finds the id in "2.0.0 queued as ID", as most servers put it; "" if
// it is not there.
func queueID(text string) string {
	_, id, ok := strings.Cut(text, "queued as ")
	if !ok {
		return ""
	}
	id, _, _ = strings.Cut(strings.TrimSpace(id), " ")
	return id
}
