package gate

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// phase says what go-smtp's next Write is, and what its next Read gets.
type phase uint8

const (
	phaseGreeting phase = iota // Write: the greeting
	phaseCommand               // Read: a command; Write: the reply to it
	phaseContent               // between the reply 354 and the end mark given to go-smtp
	phaseOutcome               // Write: the reply to the message
)

// endMark is all that go-smtp ever sees of a message.
const endMark = ".\r\n"

// A Conn is one SMTP connection as go-smtp sees it.
//
// Read, Write, Close and the methods for the session are for one goroutine.
// drain and die may be called by others.
type Conn struct {
	gate   *Gate
	client netip.Addr
	wire   *wire
	stream io.ReadWriter // wire, or tls above it
	tls    *tls.Conn

	// Set by Gate.add.
	refusal   *mail.Reply // given instead of the greeting
	counted   bool
	clientKey netip.Prefix

	phase phase

	// Input: in[r:w] was read and not yet used.
	in     []byte
	r, w   int
	chunk  int   // in[chunk:w] came with the last read ...
	chunkP int64 // ... which began at this position on the wire
	olderP int64 // position of in[r], when r < chunk
	small  [inputBytes]byte
	large  *[bodyInputBytes]byte // nil while no body is received

	feed []byte // what go-smtp is to read next

	// The command that go-smtp works on, and the state of the dialog.
	verb       string
	argument   string
	hello      string
	extended   bool
	inMail     bool
	recipients int
	errors     int
	junk       int

	// The message that is being received.
	lines    lineEnds
	held     bool // the 354 was not sent yet
	ended    bool // the end mark was read
	lf       bool // a CRLF is to be given out first
	cut      bool // the rest of the message will not be read: close after the reply
	broken   error
	waited   time.Duration // within this rate window
	received int           // within this rate window

	// Output.
	partial []byte // of a line that go-smtp has not finished
	reply   []replyLine
	out     []byte

	onRead func()
	unread []unreadReply

	mu       sync.Mutex
	draining bool
	hasty    bool // a drain does not wait for the transaction
	busy     bool // inside a transaction: a drain waits
	dead     bool // the socket is closed
}

type replyLine struct {
	code int
	raw  []byte
}

// An unreadReply is a 250 of which we do not know yet that the client read it.
type unreadReply struct {
	mark int64 // octets that had reached us when it was written
	read func()
}

func newConn(g *Gate, inner net.Conn) *Conn {
	w := &wire{Conn: inner}
	c := &Conn{gate: g, client: clientAddr(inner), wire: w, stream: w}
	c.in = c.small[:]
	return c
}

// For the session.

// Client returns the address of the client; the zero Addr if it has none.
func (c *Conn) Client() netip.Addr { return c.client }

// Hello returns the argument of the last HELO or EHLO, as sent, and whether it
// was EHLO.
func (c *Conn) Hello() (name string, extended bool) { return c.hello, c.extended }

// TLS returns the state of TLS, if it is on.
func (c *Conn) TLS() (tls.ConnectionState, bool) {
	if c.tls == nil {
		return tls.ConnectionState{}, false
	}
	return c.tls.ConnectionState(), true
}

// ClientKey returns SHA-256 of the key (SubjectPublicKeyInfo) of the TLS certificate
// that the client showed. The client has the key; of what else the certificate says,
// names and dates, nothing was verified.
func (c *Conn) ClientKey() (key [32]byte, ok bool) {
	state, ok := c.TLS()
	if !ok || len(state.PeerCertificates) == 0 {
		return key, false
	}
	return sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo), true
}

// Argument returns what stood behind the verb of the command being executed,
// as the client wrote it, without spaces around it.
func (c *Conn) Argument() string { return c.argument }

// OnRead has fn called once, on the goroutine of the handler, when the client
// has provably read the 250 that is about to be given to its message. It may
// never be called.
func (c *Conn) OnRead(fn func()) { c.onRead = fn }

// CloseSilently closes the connection. Nothing is written any more, not even
// what was held back, nor TLS's close_notify.
func (c *Conn) CloseSilently() {
	c.gate.stats.Silent.Add(1)
	c.out = nil
	c.die()
}

// net.Conn.

// Read gives go-smtp one command, or the end mark of a message.
func (c *Conn) Read(p []byte) (n int, err error) {
	defer c.contain(&err)
	if c.isDead() {
		return 0, net.ErrClosed
	}
	if len(c.feed) == 0 {
		if c.phase == phaseContent {
			err = c.endContent()
		} else {
			err = c.nextCommand()
		}
		if err != nil {
			return 0, err
		}
	}
	n = copy(p, c.feed)
	c.feed = c.feed[n:]
	return n, nil
}

// Write takes go-smtp's replies, line by line, and says them in our words.
func (c *Conn) Write(p []byte) (n int, err error) {
	defer c.contain(&err)
	if c.isDead() {
		return 0, net.ErrClosed
	}
	c.partial = append(c.partial, p...)
	for {
		end := bytes.IndexByte(c.partial, '\n')
		if end < 0 {
			return len(p), nil
		}
		line := bytes.Clone(c.partial[:end+1])
		c.partial = c.partial[end+1:]
		code := 0
		if len(line) >= 4 {
			code, _ = strconv.Atoi(string(line[:3]))
		}
		c.reply = append(c.reply, replyLine{code, line})
		if len(line) >= 4 && line[3] == '-' {
			continue
		}
		lines := c.reply
		c.reply = nil
		if err := c.replied(code, lines); err != nil {
			return 0, err
		}
	}
}

// Close flushes what is held back and closes.
func (c *Conn) Close() error {
	if !c.isDead() {
		_ = c.flush()
		if c.tls != nil && !c.isDead() {
			_ = c.tls.Close() // Says close_notify; bounded by its own 5 s.
		}
	}
	c.die()
	c.gate.remove(c)
	return nil
}

func (c *Conn) LocalAddr() net.Addr  { return c.wire.LocalAddr() }
func (c *Conn) RemoteAddr() net.Addr { return c.wire.RemoteAddr() }

// The deadlines are the gate's own.

func (c *Conn) SetDeadline(time.Time) error      { return nil }
func (c *Conn) SetReadDeadline(time.Time) error  { return nil }
func (c *Conn) SetWriteDeadline(time.Time) error { return nil }

// contain turns a panic of the gate into the end of one connection: go-smtp
// would let it end the process.
func (c *Conn) contain(err *error) {
	if r := recover(); r != nil {
		c.gate.log.Error("smtp gate panicked", "client", c.client, "panic", r, "stack", string(debug.Stack()))
		c.die()
		*err = net.ErrClosed
	}
}

// replied acts on a whole reply of go-smtp.
func (c *Conn) replied(code int, lines []replyLine) error {
	switch c.phase {
	case phaseGreeting:
		c.phase = phaseCommand
		return c.greet()
	case phaseContent:
		// Only a panic inside go-smtp can bring a reply here. If the end mark
		// was read, the outcome is unknown.
		if c.ended {
			c.CloseSilently()
			return net.ErrClosed
		}
	case phaseOutcome:
		return c.outcome(code, lines)
	}
	switch {
	case c.verb == "EHLO" && code == 250:
		c.endTransaction()
		c.sayHello()
		return nil
	case c.verb == "HELO" && code == 250:
		c.endTransaction()
		c.out = fmt.Appendf(c.out, "250 %s\r\n", c.gate.config.Hostname)
		return nil
	case c.verb == "MAIL" && code == 250:
		c.inMail = true
		c.setBusy(true)
		return c.say(replySenderOK)
	case c.verb == "RCPT" && code == 250:
		c.recipients++
		return c.say(replyRcptOK)
	case c.verb == "RSET" && code == 250:
		c.endTransaction()
	case c.verb == "DATA" && code == replyGoAhead.Code:
		// Held back until the session asks for the body: it may still refuse.
		c.phase = phaseContent
		c.lines = lineEnds{lineMax: c.gate.limits.BodyLineMax, controls: c.gate.config.Controls}
		c.held, c.ended, c.lf, c.cut, c.broken = true, false, false, false, nil
		c.waited, c.received = 0, 0
		return nil
	}
	return c.pass(code, lines)
}

// greet gives the greeting, or the reason why there is none.
func (c *Conn) greet() error {
	if c.refusal == nil && c.gate.config.Refuse != nil {
		if c.refusal = c.gate.config.Refuse(); c.refusal != nil {
			c.gate.stats.NotReady.Add(1)
		}
	}
	if c.refusal != nil {
		// No lingering: the client has nothing to say yet, and there may be
		// very many of them.
		c.out = fmt.Appendf(c.out, "%s\r\n", c.named(*c.refusal))
		_ = c.flush()
		c.die()
		return net.ErrClosed
	}
	c.out = fmt.Appendf(c.out, "220 %s ESMTP Holdfast\r\n", c.gate.config.Hostname)
	return nil
}

// named puts our name into the text, where RFC 5321 section 4.2.2 wants it.
func (c *Conn) named(r mail.Reply) mail.Reply {
	r.Text = c.gate.config.Hostname + " " + r.Text
	return r
}

func (c *Conn) sayHello() {
	lines := append([]string{c.gate.config.Hostname}, c.gate.config.Extensions...)
	if c.gate.config.TLS != nil && c.tls == nil {
		lines = append(lines, "STARTTLS")
	}
	for i, line := range lines {
		sep := '-'
		if i == len(lines)-1 {
			sep = ' '
		}
		c.out = fmt.Appendf(c.out, "250%c%s\r\n", sep, line)
	}
}

// outcome passes the reply to a message on.
func (c *Conn) outcome(code int, lines []replyLine) error {
	c.phase = phaseCommand
	onRead := c.onRead
	c.endTransaction()
	if code == 250 {
		c.errors, c.junk = 0, 0
	}
	if code != 250 || onRead == nil {
		if err := c.pass(code, lines); err != nil {
			return err
		}
		if c.cut {
			return c.closeLingering()
		}
		return c.flush()
	}
	if err := c.flush(); err != nil {
		return err
	}
	// What reached us up to here proves nothing. Between this count and the
	// write a command may slip in that was sent without having read the 250; the
	// same can happen to it anywhere on the network, and no server can tell.
	mark, known := c.wire.arrived()
	if !known {
		mark = math.MaxInt64
	}
	if err := c.pass(code, lines); err != nil {
		return err
	}
	if err := c.flush(); err != nil {
		return err
	}
	if known {
		if len(c.unread) == unreadRepliesMax {
			c.unread = c.unread[1:]
		}
		c.unread = append(c.unread, unreadReply{mark, onRead})
	}
	return nil
}

// commandArrived takes note of a command whose first octet came at a position
// on the wire.
func (c *Conn) commandArrived(position int64) {
	for len(c.unread) > 0 && c.unread[0].mark <= position {
		read := c.unread[0].read
		c.unread = c.unread[1:]
		read()
	}
}

// endTransaction resets what MAIL began.
func (c *Conn) endTransaction() {
	c.inMail, c.recipients, c.onRead = false, 0, nil
	c.setBusy(false)
}

// mustLeave reports that a drain wants this connection closed now.
func (c *Conn) mustLeave() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.leaves() && !c.dead
}

// leaves is mustLeave for who has the lock.
func (c *Conn) leaves() bool { return c.draining && (!c.busy || c.hasty) }

func (c *Conn) setBusy(busy bool) {
	c.mu.Lock()
	c.busy = busy
	c.mu.Unlock()
}

func (c *Conn) isDead() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.dead
}

// drain lets the handler say 421 when it awaits, or will await, a command
// outside a transaction. If it is hasty, inside one too, and in a message.
func (c *Conn) drain(hasty bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.draining, c.hasty = true, c.hasty || hasty
	if c.leaves() && !c.dead {
		_ = c.wire.SetReadDeadline(time.Unix(1, 0)) // Wakes a Read that waits.
	}
}

// die closes the socket, with nothing written.
func (c *Conn) die() {
	c.mu.Lock()
	dead := c.dead
	c.dead = true
	c.mu.Unlock()
	if !dead {
		_ = c.wire.Conn.Close()
	}
}
