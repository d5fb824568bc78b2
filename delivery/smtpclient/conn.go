package smtpclient

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// writeBufferBytes is how much goes out in one write. With Timeouts.Block it
// also sets the slowest peer that we wait for.
const writeBufferBytes = 64 << 10

// Options say how to open a conversation.
type Options struct {
	// Hello is our host name, the argument of EHLO.
	Hello string
	// TLS is used when the peer offers STARTTLS. Nil does without.
	TLS *tls.Config
	// Secured is the TLS layer over the connection where there is one already: who
	// calls for its mail has begun it. STARTTLS is then not said.
	Secured  *tls.Conn
	Timeouts Timeouts
}

// A Conn is one conversation, open between EHLO and QUIT. It is for one
// goroutine at a time.
//
// Invariant: after an error that is a *StageError, and after Abort and Quit,
// the network connection is closed and every further call fails.
type Conn struct {
	raw      net.Conn // closed to end everything, at once
	wire     net.Conn // raw, or TLS over it
	r        *bufio.Reader
	w        *bufio.Writer
	hello    string
	timeouts Timeouts

	name       string            // in the banner
	extensions map[string]string // keyword in upper case -> parameters
	secure     *tls.ConnectionState

	dead     error // why nothing more can be said
	stale    bool  // a transaction was left open: RSET before the next
	inData   bool  // between 354 and the final dot
	content  stuffer
	buffer   []byte // bodyBlockBytes of content, once there was any
	tookWire int    // octets that the network took since the dot was due

	ahead     *pending // the transaction behind a dot whose reply was read
	aheadOut  bool     // commands behind a dot are out, and not all are answered
	pipelines bool     // a transaction behind a dot was answered with 354
	strayed   bool     // PipeliningFailed
}

// Open reads the banner, says EHLO (or HELO), and begins TLS where both sides
// can. It takes nc over: on an error nc is closed. An error is a *StageError;
// it wraps ErrTLS when doing without TLS may help.
func Open(ctx context.Context, nc net.Conn, o Options) (*Conn, error) {
	c := &Conn{raw: nc, wire: nc, hello: o.Hello, timeouts: o.Timeouts.withDefaults()}
	c.r = bufio.NewReaderSize(nc, replyLineBytesMax)
	c.w = bufio.NewWriterSize(blockWriter{c}, writeBufferBytes)
	if o.Secured != nil {
		state := o.Secured.ConnectionState()
		c.wire, c.secure = o.Secured, &state
		c.r.Reset(o.Secured)
	}
	end := c.guard(ctx)
	defer end()
	banner, err := c.read(StageBanner, c.timeouts.Banner)
	if err != nil {
		return nil, err
	}
	if !banner.Positive() {
		return nil, c.refused(StageBanner, banner.Reply)
	}
	c.name, _, _ = strings.Cut(banner.lines[0], " ")
	if err := c.greet(); err != nil {
		return nil, err
	}
	if _, offered := c.extensions["STARTTLS"]; offered && o.TLS != nil && c.secure == nil {
		if err := c.startTLS(ctx, o.TLS); err != nil {
			return nil, err
		}
	}
	return c, nil
}

// TLS returns the state of the TLS layer, or nil in the clear.
func (c *Conn) TLS() *tls.ConnectionState { return c.secure }

// Name returns the name that the peer gave itself in its banner (RFC 5321 section
// 4.2), in whatever letters.
func (c *Conn) Name() string { return c.name }

// Offers reports whether the peer's last EHLO reply had the keyword, which is
// given in upper case.
func (c *Conn) Offers(keyword string) bool {
	_, ok := c.extensions[keyword]
	return ok
}

// Usable reports whether another transaction may be begun, or was begun by
// DotAndBegin.
func (c *Conn) Usable() bool { return c.dead == nil && !c.inData }

// greet says EHLO, and HELO to a peer that does not know it (RFC 5321 section
// 3.2).
func (c *Conn) greet() error {
	c.extensions = nil
	reply, err := c.exchange(StageHello, c.timeouts.Hello, "EHLO "+c.hello)
	if err != nil {
		return err
	}
	if reply.Permanent() {
		if reply, err = c.exchange(StageHello, c.timeouts.Hello, "HELO "+c.hello); err != nil {
			return err
		}
		if !reply.Positive() {
			return c.refused(StageHello, reply.Reply)
		}
		return nil
	}
	if !reply.Positive() {
		return c.refused(StageHello, reply.Reply)
	}
	c.learn(reply)
	return nil
}

// learn takes what a reply to EHLO offers.
func (c *Conn) learn(reply response) {
	c.extensions = make(map[string]string)
	for _, line := range reply.lines[1:] {
		keyword, parameters, _ := strings.Cut(line, " ")
		c.extensions[strings.ToUpper(keyword)] = parameters
	}
}

// startTLS begins TLS and says EHLO again: what was learnt in the clear is
// forgotten (RFC 3207 section 4.2). A peer that offers STARTTLS and then
// refuses it is spoken to in the clear. One that falls silent, or says what is
// neither yes nor no, may have begun TLS: nothing more can be said here.
func (c *Conn) startTLS(ctx context.Context, config *tls.Config) error {
	reply, err := c.exchange(StageStartTLS, c.timeouts.StartTLS, "STARTTLS")
	switch {
	case err != nil:
		return blameTLS(err)
	case reply.Transient() || reply.Permanent():
		return nil
	case reply.Code != 220:
		return c.fail(&StageError{Stage: StageStartTLS, Reply: reply.Reply, Err: fmt.Errorf("%w: neither begun nor refused", ErrTLS)})
	}
	// Whatever stood behind the 220 came in the clear, from anybody.
	client := tls.Client(c.raw, config)
	if err := c.raw.SetDeadline(time.Now().Add(c.timeouts.Handshake)); err != nil {
		return c.broken(StageHandshake, fmt.Errorf("%w: %w", ErrTLS, err))
	}
	if err := client.HandshakeContext(ctx); err != nil {
		return c.broken(StageHandshake, fmt.Errorf("%w: %w", ErrTLS, err))
	}
	_ = c.raw.SetDeadline(time.Time{})
	state := client.ConnectionState()
	c.wire, c.secure = client, &state
	c.r.Reset(client)
	c.w.Reset(blockWriter{c})
	if err := c.greet(); err != nil {
		// With TLS 1.3 a peer that rejects our handshake is heard only now.
		return blameTLS(err)
	}
	return nil
}

// blameTLS has an error wrap ErrTLS where the peer did not say in words what is
// wrong.
func blameTLS(err error) error {
	var stage *StageError
	if errors.As(err, &stage) && stage.Reply.Code == 0 {
		stage.Err = fmt.Errorf("%w: %w", ErrTLS, stage.Err)
	}
	return err
}

// Quit ends the conversation politely: QUIT, its reply, close. Nothing depends
// on it. Where the peer waits for content, or may come to, QUIT would be
// content: there it only closes.
func (c *Conn) Quit(ctx context.Context) error {
	if c.dead != nil || c.inData || c.ahead != nil {
		c.Abort()
		return nil
	}
	end := c.guard(ctx)
	_, err := c.exchange(StageQuit, c.timeouts.Quit, "QUIT")
	end()
	c.Abort()
	return err
}

// Abort closes the connection without another word, and without what was not yet
// written. Before the final dot that
// is how a message is certainly not handed over.
func (c *Conn) Abort() {
	if c.dead == nil {
		c.dead = ErrClosed
	}
	_ = c.raw.Close()
}

// guard closes the connection when ctx ends before the returned function is
// called. Closing, unlike a deadline, cannot be undone by the next step.
func (c *Conn) guard(ctx context.Context) (end func()) {
	stop := context.AfterFunc(ctx, func() { _ = c.raw.Close() })
	return func() {
		if !stop() && c.dead == nil {
			c.dead = context.Cause(ctx)
		}
	}
}

// exchange sends one command and reads its reply. A 421 ends the connection at
// any stage (RFC 5321 section 3.8).
func (c *Conn) exchange(stage Stage, timeout time.Duration, line string) (response, error) {
	if err := c.quiet(stage); err != nil {
		return response{}, err
	}
	if err := c.send(stage, command{line: line}); err != nil {
		return response{}, err
	}
	return c.read(stage, timeout)
}

// quiet fails when the peer has spoken without being asked: its replies could
// no longer be told apart. Mostly it is the 421 of an idle connection.
func (c *Conn) quiet(stage Stage) error {
	if c.dead != nil {
		return &StageError{Stage: stage, Err: fmt.Errorf("%w: %w", ErrClosed, c.dead)}
	}
	heard, err := c.heard()
	switch {
	case err != nil:
		return c.broken(stage, err)
	case !heard:
		return nil
	}
	reply, err := c.read(stage, c.timeouts.Quit)
	if err != nil {
		return err
	}
	return c.fail(&StageError{Stage: stage, Reply: reply.Reply, Err: fmt.Errorf("%w: not asked for", ErrReply)})
}

// inStep fails when the peer has said more than it was asked: then nobody knows
// which of its replies was to what. That it closes behind them, or says 421, takes
// nothing back.
func (c *Conn) inStep(stage Stage) error {
	if heard, err := c.heard(); err != nil || !heard {
		return nil
	}
	err := c.quiet(stage)
	var e *StageError
	if errors.As(err, &e) && e.Reply.Code == 421 {
		return nil
	}
	return err
}

// recordTimeout is how long the rest of a TLS record is waited for that has begun
// to arrive.
const recordTimeout = 100 * time.Millisecond

// heard reports whether there is something that the peer said and we did not
// read. It looks at the network too: a reply that lies there when a command goes
// out would be taken for the reply to that. An error is the end of the connection.
func (c *Conn) heard() (bool, error) {
	if c.r.Buffered() > 0 {
		return true, nil
	}
	until := time.Now() // Nothing is waited for; what the TLS layer has is given out.
	switch came := readable(c.raw); {
	case came:
		until = until.Add(recordTimeout)
	case c.secure == nil:
		return false, nil
	}
	if err := c.wire.SetReadDeadline(until); err != nil {
		return false, err
	}
	_, err := c.r.Peek(1)
	var late net.Error
	if errors.As(err, &late) && late.Timeout() {
		return false, nil // Under TLS, what came need not be words.
	}
	return err == nil, err
}

// send writes commands in one write.
func (c *Conn) send(stage Stage, group ...command) error {
	if c.dead != nil {
		return &StageError{Stage: stage, Err: fmt.Errorf("%w: %w", ErrClosed, c.dead)}
	}
	c.compose(group)
	if err := c.w.Flush(); err != nil {
		return c.lost(stage, err)
	}
	return nil
}

// compose puts commands into the write buffer, where they fit.
func (c *Conn) compose(group []command) {
	for _, g := range group {
		_, _ = c.w.WriteString(g.line)
		_, _ = c.w.WriteString("\r\n")
	}
}

// read reads one reply. The timeout is for the whole of it, so that a peer that
// dribbles is no better off than one that hangs.
func (c *Conn) read(stage Stage, timeout time.Duration) (response, error) {
	if c.dead != nil {
		return response{}, &StageError{Stage: stage, Err: fmt.Errorf("%w: %w", ErrClosed, c.dead)}
	}
	if err := c.wire.SetReadDeadline(time.Now().Add(timeout)); err != nil {
		return response{}, c.broken(stage, err)
	}
	reply, err := readResponse(c.r)
	if err != nil {
		return response{}, c.broken(stage, err)
	}
	if reply.Code == 421 {
		return reply, c.refused(stage, reply.Reply)
	}
	return reply, nil
}

// lost is a failed write. The peer may have said why it left.
func (c *Conn) lost(stage Stage, cause error) error {
	e := &StageError{Stage: stage, Err: cause}
	if c.wire.SetReadDeadline(time.Now().Add(lastWordTimeout)) == nil {
		if reply, err := readResponse(c.r); err == nil && !reply.Positive() {
			e.Reply = reply.Reply
		}
	}
	return c.fail(e)
}

// lastWordTimeout bounds the wait for a reply on a connection that no longer
// takes what we write.
const lastWordTimeout = time.Second

func (c *Conn) broken(stage Stage, cause error) error {
	return c.fail(&StageError{Stage: stage, Err: cause})
}

func (c *Conn) refused(stage Stage, reply mail.Reply) error {
	return c.fail(&StageError{Stage: stage, Reply: reply})
}

func (c *Conn) fail(e *StageError) error {
	if c.dead == nil {
		c.dead = e
		c.strayed = c.aheadOut && c.suspicious(e)
	}
	_ = c.raw.Close()
	return e
}

// A blockWriter gives each write to the network its own deadline, also in the
// middle of a body.
type blockWriter struct{ c *Conn }

func (b blockWriter) Write(p []byte) (int, error) {
	if err := b.c.wire.SetWriteDeadline(time.Now().Add(b.c.timeouts.Block)); err != nil {
		return 0, err
	}
	n, err := b.c.wire.Write(p)
	b.c.tookWire += n
	return n, err
}
