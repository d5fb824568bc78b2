package smtpclient

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// groupMax is how many commands go out before their replies are read. A peer
// answers each with some dozens of octets; unbounded, both sides could wait for
// the other to read (RFC 2920 section 3.1).
const groupMax = 50

// groupBytesMax bounds them in octets, and dotBytesMax a dot with a group behind
// it: they leave in one write.
const (
	groupBytesMax = writeBufferBytes / 2
	dotBytesMax   = groupBytesMax + len(".\r\n")
)

// bodyBlockBytes is how much of the content is read at once.
const bodyBlockBytes = 64 << 10

// A Transaction is what stands before the content.
type Transaction struct {
	From       mail.ReversePath
	Recipients []mail.Recipient // not empty
	Size       mail.ByteSize    // of trace fields and content, for SIZE
	EightBit   bool
	SMTPUTF8   bool
	Return     mail.Return
	EnvelopeID string
}

// An Answer is what the peer said to MAIL, RCPT and DATA. A zero reply means
// that the command was not sent.
type Answer struct {
	Mail       mail.Reply
	Recipients []mail.Reply // in the order of Transaction.Recipients
	Data       mail.Reply
	// Open: the peer waits for the content, and took at least one recipient.
	// Body, then Dot or Abort, must follow.
	Open bool
}

// Begin says MAIL, RCPT and DATA, and RSET first where the transaction before
// was left open. An error is a *StageError, ErrSMTPUTF8 or ErrUnsafe; with it
// the Answer holds what was said so far.
//
// Where the peer pipelines, DATA may be answered by 354 although no recipient
// was taken. Then the transaction is ended here by a lone dot (RFC 2920 section
// 3.1), and nothing was delivered: Open is false.
//
// What is refused for good has been confirmed: behind it the peer was asked to say
// RSET's 250, or it ended the connection.
func (c *Conn) Begin(ctx context.Context, t Transaction) (Answer, error) {
	answer := Answer{Recipients: make([]mail.Reply, len(t.Recipients))}
	commands, err := c.commands(t)
	if err != nil {
		return answer, err
	}
	if c.inData || c.ahead != nil {
		return answer, c.broken(StageMail, fmt.Errorf("%w: another transaction is open", ErrClosed))
	}
	end := c.guard(ctx)
	defer end()
	if err := c.quiet(StageMail); err != nil {
		return answer, err
	}
	if c.stale {
		commands = append([]command{{stage: StageMail, line: "RSET", recipient: -1}}, commands...)
	}
	c.stale = true
	group, rest := c.cut(commands)
	if err := c.send(group[0].stage, group...); err != nil {
		return answer, err
	}
	err = c.converse(group, rest, &answer)
	if err == nil {
		err = c.answered(answer)
	}
	if err == nil {
		err = c.confirm(answer)
	}
	answer.Open = answer.Open && err == nil
	return answer, err
}

// answered fails when the peer said more than belongs into the answer.
func (c *Conn) answered(a Answer) error {
	if a.Open {
		return c.quiet(StageData)
	}
	return c.inStep(StageData)
}

// confirm asks for a sign that replies and commands belong together before a refusal
// is believed that would end a message: a reply too many that comes late looks like one
// to the command behind it. Where content may follow, the 354 is that sign; else RSET is
// said, which must come before the next MAIL anyway. If the peer is in the middle of a
// content by then, no dot follows. That it leaves instead takes nothing back, but what
// it said of a recipient and of DATA in the same words may have been said once too often.
func (c *Conn) confirm(a Answer) error {
	if a.Open || !a.Mail.Positive() || !a.refusesForGood() {
		return nil
	}
	doubt := func(said mail.Reply, why error) error {
		c.strayed = c.aheadOut
		return c.fail(&StageError{Stage: StageData, Reply: said, Err: fmt.Errorf("%w: after a refusal, %w", ErrReply, why)})
	}
	left := c.dead != nil // behind its replies
	var reply response
	var err error
	if !left {
		reply, err = c.exchange(StageData, c.timeouts.Pipelined, "RSET")
		var e *StageError
		left = errors.As(err, &e) && e.left()
	}
	switch {
	case left && a.taken() && slices.Contains(a.Recipients, a.Data):
		return doubt(a.Data, errors.New("which was that of a recipient, it left"))
	case left:
		return nil
	case err != nil:
		return doubt(a.lastRefusal(), fmt.Errorf("to RSET: %w", err))
	case reply.Positive():
		c.stale = false
	case reply.Code == 500 || reply.Code == 502:
		// It knows no RSET (RFC 5321 section 4.5.1 has it), and says so in its place.
		_ = c.refused(StageMail, reply.Reply)
	default:
		return doubt(reply.Reply, errors.New("to RSET"))
	}
	return nil
}

// cut divides commands into those that go out in one write and the rest.
func (c *Conn) cut(commands []command) (group, rest []command) {
	n, size := 1, len(commands[0].line)
	if c.Offers("PIPELINING") {
		for n < min(len(commands), groupMax) && size+len(commands[n].line)+2 <= groupBytesMax {
			size += len(commands[n].line) + 2
			n++
		}
	}
	return commands[:n], commands[n:]
}

// converse reads the replies to a group that is out, goes on with the rest, and
// takes the answer to DATA.
func (c *Conn) converse(group, rest []command, answer *Answer) error {
	for {
		if err := c.collect(group, answer); err != nil {
			return err
		}
		if len(rest) == 0 || !answer.Mail.Positive() && answer.Mail.Code != 0 {
			break
		}
		if rest[0].stage == StageData && !answer.taken() {
			return nil // Nobody to send it to: RSET comes before the next MAIL.
		}
		if err := c.quiet(rest[0].stage); err != nil {
			return err
		}
		group, rest = c.cut(rest)
		if err := c.send(group[0].stage, group...); err != nil {
			return err
		}
	}
	switch {
	case answer.Data.Code != 354:
		if answer.Data.Code != 0 && !answer.Data.Transient() && !answer.Data.Permanent() {
			return c.fail(&StageError{Stage: StageData, Reply: answer.Data, Err: fmt.Errorf("%w: DATA", ErrReply)})
		}
		return nil
	case !answer.Mail.Positive():
		// Whatever this peer would make of a dot, it is not a refusal.
		return c.fail(&StageError{Stage: StageData, Reply: answer.Data, Err: fmt.Errorf("%w: MAIL was refused", ErrReply)})
	case !answer.taken():
		if c.aheadOut {
			// Perhaps its replies are not those to our commands.
			return c.fail(&StageError{Stage: StageData, Reply: answer.Data, Err: fmt.Errorf("%w: no recipient was taken", ErrReply)})
		}
		_, err := c.exchange(StageData, c.timeouts.Dot, ".")
		return err
	}
	c.inData, c.content = true, stuffer{}
	answer.Open = true
	return nil
}

// taken reports whether any recipient was.
func (a Answer) taken() bool {
	for _, r := range a.Recipients {
		if r.Positive() {
			return true
		}
	}
	return false
}

// refusesForGood reports whether a message ends by this, for one recipient at least.
func (a Answer) refusesForGood() bool {
	return a.Data.Permanent() && a.taken() || slices.ContainsFunc(a.Recipients, mail.Reply.Permanent)
}

// lastRefusal returns the last reply that refuses for good.
func (a Answer) lastRefusal() (last mail.Reply) {
	for _, r := range append(slices.Clone(a.Recipients), a.Data) {
		if r.Permanent() {
			last = r
		}
	}
	return last
}

// A command is one line of the envelope and where its reply belongs.
type command struct {
	stage     Stage
	line      string
	recipient int // position, or -1
}

// collect reads the replies to a group.
func (c *Conn) collect(group []command, answer *Answer) error {
	for _, g := range group {
		timeout := c.timeouts.Mail
		switch g.stage {
		case StageRecipient:
			timeout = c.timeouts.Recipient
		case StageData:
			timeout = c.timeouts.Data
		}
		if c.aheadOut {
			timeout = min(timeout, c.timeouts.Pipelined)
		}
		reply, err := c.read(g.stage, timeout)
		if err != nil {
			return err
		}
		switch {
		case g.stage != StageData && !reply.Positive() && !reply.Transient() && !reply.Permanent():
			// 3yz: it may wait for content, and would take commands for that.
			return c.fail(&StageError{Stage: g.stage, Reply: reply.Reply, Err: fmt.Errorf("%w: more is asked for", ErrReply)})
		case g.line == "RSET":
			if !reply.Positive() {
				return c.refused(StageMail, reply.Reply)
			}
		case g.stage == StageMail:
			answer.Mail = reply.Reply
		case g.stage == StageRecipient:
			answer.Recipients[g.recipient] = reply.Reply
		case g.stage == StageData:
			answer.Data = reply.Reply
		}
	}
	return nil
}

// commands writes the envelope's command lines with the parameters that the
// peer offers.
func (c *Conn) commands(t Transaction) ([]command, error) {
	if t.SMTPUTF8 && !c.Offers("SMTPUTF8") {
		return nil, ErrSMTPUTF8
	}
	from, err := path(t.From.Mailbox, true)
	if err != nil {
		return nil, fmt.Errorf("reverse-path: %w", err)
	}
	dsn := c.Offers("DSN")
	var b strings.Builder
	b.WriteString("MAIL FROM:" + from)
	if c.Offers("SIZE") && t.Size > 0 {
		b.WriteString(" SIZE=" + strconv.FormatInt(int64(t.Size), 10))
	}
	if t.EightBit && c.Offers("8BITMIME") {
		b.WriteString(" BODY=8BITMIME")
	}
	if t.SMTPUTF8 {
		b.WriteString(" SMTPUTF8")
	}
	if dsn {
		switch t.Return {
		case mail.ReturnFull:
			b.WriteString(" RET=FULL")
		case mail.ReturnHeaders:
			b.WriteString(" RET=HDRS")
		}
		if t.EnvelopeID != "" {
			if !isParameter(t.EnvelopeID) {
				return nil, fmt.Errorf("ENVID %q: %w", t.EnvelopeID, ErrUnsafe)
			}
			b.WriteString(" ENVID=" + t.EnvelopeID)
		}
	}
	commands := make([]command, 0, len(t.Recipients)+2)
	commands = append(commands, command{StageMail, b.String(), -1})
	for i, r := range t.Recipients {
		to, err := path(r.Path.Mailbox, false)
		if err != nil {
			return nil, fmt.Errorf("forward-path: %w", err)
		}
		line := "RCPT TO:" + to
		if dsn && r.Notify != 0 {
			line += " NOTIFY=" + notify(r.Notify)
		}
		if dsn && r.Original != "" {
			if !isParameter(r.Original) {
				return nil, fmt.Errorf("ORCPT %q: %w", r.Original, ErrUnsafe)
			}
			line += " ORCPT=" + r.Original
		}
		commands = append(commands, command{StageRecipient, line, i})
	}
	return append(commands, command{StageData, "DATA", -1}), nil
}

// path writes a mailbox in angle brackets, to the letter, after it was parsed
// once more: a local part that is no dot-string must be a whole quoted-string,
// or what stands in it becomes a parameter at the peer.
func path(m mail.Mailbox, nullAllowed bool) (string, error) {
	if m == (mail.Mailbox{}) && nullAllowed {
		return "<>", nil
	}
	if m.Host == "" && strings.EqualFold(m.Local, "postmaster") { // RFC 5321 section 4.5.1
		return "<" + m.Local + ">", nil
	}
	if strings.HasPrefix(m.Local, "@") {
		return "", fmt.Errorf("%q: %w", m.String(), ErrUnsafe)
	}
	if _, err := mail.ParseReversePath(m.String(), true); err != nil || m.Local == "" {
		return "", fmt.Errorf("%q: %w", m.String(), ErrUnsafe)
	}
	return "<" + m.String() + ">", nil
}

// isParameter reports whether s is an esmtp-value of RFC 5321 section 4.1.2,
// which allows "=" only in the keyword; UTF-8 is RFC 6533's.
func isParameter(s string) bool {
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == '=' || c == 0x7f {
			return false
		}
	}
	return s != ""
}

func notify(n mail.Notify) string {
	if n&mail.NotifyNever != 0 {
		return "NEVER"
	}
	var parts []string
	for _, p := range []struct {
		bit  mail.Notify
		name string
	}{{mail.NotifySuccess, "SUCCESS"}, {mail.NotifyFailure, "FAILURE"}, {mail.NotifyDelay, "DELAY"}} {
		if n&p.bit != 0 {
			parts = append(parts, p.name)
		}
	}
	return strings.Join(parts, ",")
}

// Body writes the trace fields and the content, dots stuffed, up to but not
// including the final dot. The last of it, of a short message all, goes out in
// one write with the dot. An error means that the connection is closed and the
// message was not handed over: it wraps ErrSource, with the reader's error, or
// ErrStray, or is a *StageError.
func (c *Conn) Body(ctx context.Context, trace []byte, content io.Reader) error {
	if !c.inData || c.dead != nil {
		return c.broken(StageBody, fmt.Errorf("%w: no content is due", ErrClosed))
	}
	end := c.guard(ctx)
	defer end()
	if err := c.block(trace); err != nil {
		return err
	}
	if c.buffer == nil {
		c.buffer = make([]byte, bodyBlockBytes)
	}
	for {
		n, err := content.Read(c.buffer)
		if n > 0 {
			if err := c.block(c.buffer[:n]); err != nil {
				return err
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			c.Abort()
			return fmt.Errorf("%w: %w", ErrSource, err)
		}
	}
	if err := c.content.close(c.w); err != nil {
		return c.unwritten(err)
	}
	return nil
}

func (c *Conn) block(p []byte) error {
	if err := c.content.write(c.w, p); err != nil {
		return c.unwritten(err)
	}
	return nil
}

// unwritten tells bad content from a bad connection.
func (c *Conn) unwritten(err error) error {
	if errors.Is(err, ErrStray) {
		c.Abort()
		return err
	}
	return c.lost(StageBody, err)
}

// Dot sends the final dot and waits for its reply. The error wraps ErrNoReply
// when the dot may have arrived: the message is in doubt. A *StageError that
// does not wrap it means that the dot certainly did not arrive.
func (c *Conn) Dot(ctx context.Context) (mail.Reply, error) {
	return c.dot(ctx, nil)
}

// dot is Dot, with the commands of the next transaction behind it.
func (c *Conn) dot(ctx context.Context, next *pending) (mail.Reply, error) {
	if !c.inData || c.dead != nil {
		return mail.Reply{}, c.broken(StageDot, fmt.Errorf("%w: no dot is due", ErrClosed))
	}
	end := c.guard(ctx)
	defer end()
	// A reply that came before the dot is not the dot's: most likely the peer
	// gave up (421, 451) while the content went out.
	if err := c.quiet(StageBody); err != nil {
		return mail.Reply{}, err
	}
	if err := ctx.Err(); err != nil {
		return mail.Reply{}, c.broken(StageDot, err)
	}
	if c.w.Available() < dotBytesMax {
		if err := c.w.Flush(); err != nil {
			return mail.Reply{}, c.lost(StageBody, err)
		}
	}
	before := c.w.Buffered() // of the content
	c.tookWire = 0
	_, _ = c.w.WriteString(".\r\n")
	if next != nil {
		c.aheadOut = true
		c.compose(next.asked)
	}
	if err := c.w.Flush(); err != nil {
		if c.secure == nil && c.tookWire <= before {
			// Not one octet of the dot was taken, typically because the peer had
			// reset the connection. Under TLS that cannot be known.
			c.aheadOut = false
			return mail.Reply{}, c.lost(StageDot, err)
		}
		return mail.Reply{}, c.broken(StageDot, fmt.Errorf("%w: %w", ErrNoReply, err))
	}
	if err := c.wire.SetReadDeadline(time.Now().Add(c.timeouts.Dot)); err != nil {
		return mail.Reply{}, c.broken(StageDot, fmt.Errorf("%w: %w", ErrNoReply, err))
	}
	reply, err := readResponse(c.r)
	if err == nil && !reply.Positive() && !reply.Transient() && !reply.Permanent() {
		err = fmt.Errorf("%w: %s", ErrReply, reply.Reply)
	}
	if err != nil {
		return mail.Reply{}, c.broken(StageDot, fmt.Errorf("%w: %w", ErrNoReply, err))
	}
	c.inData, c.stale, c.ahead = false, next != nil, next
	switch {
	case reply.Code == 421:
		_ = c.refused(StageDot, reply.Reply)
	case next != nil && complains(reply.Reply):
		_ = c.fail(&StageError{Stage: StageDot, Reply: reply.Reply, Err: fmt.Errorf("%w: to what was pipelined", ErrReply)})
	}
	return reply.Reply, nil
}
