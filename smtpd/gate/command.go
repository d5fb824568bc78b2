package gate

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// nextCommand reads commands and answers those that are the gate's, until one
// is go-smtp's.
func (c *Conn) nextCommand() error {
	for {
		line, position, err := c.readLine()
		if err != nil {
			return err
		}
		feed, err := c.command(line, position)
		if err != nil {
			return err
		}
		if c.isDead() {
			return net.ErrClosed
		}
		if feed != "" {
			c.feed = []byte(feed)
			return nil
		}
	}
}

// readLine returns the next command line without its end, and the position on
// the wire where it began. A bare LF ends it too. One that is too long is
// answered and skipped. After an error the connection is closed, with or
// without a last reply.
func (c *Conn) readLine() (line []byte, position int64, err error) {
	deadline := time.Now().Add(c.gate.limits.CommandTimeout)
	scanned, skipped := 0, 0
	if c.mustLeave() { // Also when further commands are pipelined.
		return nil, 0, c.sayLast(c.named(replyDraining))
	}
	for {
		if i := bytes.IndexByte(c.in[c.r+scanned:c.w], '\n'); i >= 0 {
			begin := c.r
			c.r += scanned + i + 1
			if skipped > 0 || c.r-begin > c.gate.limits.CommandLineMax {
				if err := c.say(replyLineLong); err != nil {
					return nil, 0, err
				}
				deadline = time.Now().Add(c.gate.limits.CommandTimeout)
				scanned, skipped = 0, 0
				continue
			}
			line = c.in[begin : c.r-1]
			return bytes.TrimSuffix(line, []byte("\r")), c.position(begin), nil
		}
		if scanned = c.w - c.r; scanned > c.gate.limits.CommandLineMax || skipped > 0 {
			skipped += scanned
			scanned, c.r = 0, c.w
			if skipped > lineDiscardMax {
				return nil, 0, c.sayLast(replyErrors)
			}
		}
		switch err := c.fill(deadline); {
		case err == nil:
		case errors.Is(err, errDraining):
			return nil, 0, c.sayLast(c.named(replyDraining))
		case isTimeout(err):
			c.gate.stats.Timeouts.Add(1)
			return nil, 0, c.sayLast(c.named(replyTimeout))
		default:
			c.die()
			return nil, 0, net.ErrClosed
		}
	}
}

// command answers a command, or returns the line that go-smtp gets for it.
func (c *Conn) command(line []byte, position int64) (feed string, err error) {
	switch {
	case c.errors >= c.gate.limits.ErrorsMax:
		return "", c.sayLast(c.named(replyErrors))
	case c.junk >= c.gate.limits.JunkMax:
		return "", c.sayLast(c.named(replyJunk))
	case bytes.ContainsFunc(line, isControl):
		return "", c.say(replyControl)
	}
	verb, argument, _ := strings.Cut(string(line), " ")
	verb = strings.ToUpper(verb)
	handle := handlerOf(verb)
	if handle == nil {
		return "", c.say(replyUnknown)
	}
	c.commandArrived(position)
	return handle(c, verb, strings.Trim(argument, " "))
}

// isControl reports the characters that no command has (RFC 5321 section
// 4.1.2). Octets that are no UTF-8 are left to the parsers of addresses.
func isControl(r rune) bool { return r < ' ' || r == 0x7f }

// A handler says the reply to a command itself, or returns what go-smtp gets.
type handler func(c *Conn, verb, argument string) (feed string, err error)

// handlerOf returns what the gate does about a verb; nil for one that we do
// not know.
func handlerOf(verb string) handler {
	switch verb {
	case "HELO", "EHLO":
		return (*Conn).greetCommand
	case "MAIL":
		return (*Conn).mailCommand
	case "RCPT":
		return (*Conn).rcptCommand
	case "DATA":
		return (*Conn).dataCommand
	case "RSET", "QUIT":
		return (*Conn).plainCommand
	case "NOOP":
		return (*Conn).noopCommand
	case "VRFY":
		return (*Conn).verifyCommand
	case "STARTTLS":
		return (*Conn).startTLSCommand
	case "HELP":
		return answer(replyHelp)
	case "ETRN":
		return (*Conn).turnCommand
	case "AUTH", "EXPN", "SEND", "SOML", "SAML", "TURN":
		return answer(replyNotHere)
	case "BDAT": // The chunk would follow at once, and is not to be read as commands.
		return last(replyNotHere)
	case "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT":
		// A browser that was led here: what follows is not to be read as commands.
		return last(replyNotSMTP)
	}
	return nil
}

// turnCommand is ETRN: not before EHLO, and not within a transaction (RFC 1985
// section 5).
func (c *Conn) turnCommand(_, argument string) (string, error) {
	c.junk++
	switch {
	case c.gate.config.Turn == nil:
		return "", c.say(replyNotHere)
	case c.hello == "":
		return "", c.say(replyHelloFirst)
	case c.inMail:
		return "", c.say(replyNested)
	case argument == "" || strings.Contains(argument, " "):
		return "", c.say(replyArgument)
	}
	if err := c.flush(); err != nil { // The answer may take a while.
		return "", err
	}
	return "", c.say(c.gate.config.Turn(c, argument))
}

// answer is a command with always the same reply.
func answer(r mail.Reply) handler {
	return func(c *Conn, _, _ string) (string, error) {
		c.junk++
		return "", c.say(r)
	}
}

// last is a command that ends the connection.
func last(r mail.Reply) handler {
	return func(c *Conn, _, _ string) (string, error) { return "", c.sayLast(r) }
}

// toSMTP notes the command for the session and for the reply to come, and
// returns the fixed form of it that go-smtp gets.
func (c *Conn) toSMTP(verb, argument, feed string) (string, error) {
	c.verb, c.argument = verb, argument
	return feed, nil
}

func (c *Conn) greetCommand(verb, argument string) (string, error) {
	// RFC 5321 section 4.1.1.1. What stands behind the name is ignored, as
	// everybody does.
	name, _, _ := strings.Cut(argument, " ")
	if !isHelloName(name) {
		return "", c.say(replyArgument)
	}
	c.junk++
	c.hello, c.extended = name, verb == "EHLO"
	return c.toSMTP(verb, argument, verb+" client\r\n")
}

// isHelloName is wider than RFC 5321's Domain, since real clients send host
// names with underscores and worse, but keeps out what has a meaning in a
// Received field.
func isHelloName(s string) bool {
	if s == "" || len(s) > 255 || !utf8.ValidString(s) || strings.HasPrefix(s, "[") != strings.HasSuffix(s, "]") {
		return false
	}
	return !strings.ContainsAny(s, "()<>@,;\\\"")
}

func (c *Conn) mailCommand(verb, argument string) (string, error) {
	switch {
	case c.hello == "":
		return "", c.say(replyHelloFirst)
	case c.inMail: // RFC 5321 section 4.1.4: the transaction goes on.
		return "", c.say(replyNested)
	}
	return c.toSMTP(verb, argument, "MAIL FROM:<>\r\n")
}

func (c *Conn) rcptCommand(verb, argument string) (string, error) {
	if !c.inMail {
		return "", c.say(c.missingMail())
	}
	return c.toSMTP(verb, argument, "RCPT TO:<r@r>\r\n")
}

func (c *Conn) dataCommand(verb, argument string) (string, error) {
	switch {
	case argument != "":
		return "", c.say(replyNoArgument)
	case !c.inMail:
		return "", c.say(c.missingMail())
	case c.recipients == 0:
		return "", c.say(replyNoRcpt)
	}
	return c.toSMTP(verb, "", "DATA\r\n")
}

func (c *Conn) missingMail() mail.Reply {
	if c.hello == "" {
		return replyHelloFirst
	}
	return replyMailFirst
}

func (c *Conn) plainCommand(verb, argument string) (string, error) {
	if argument != "" {
		return "", c.say(replyNoArgument)
	}
	c.junk++
	return c.toSMTP(verb, "", verb+"\r\n")
}

func (c *Conn) noopCommand(verb, _ string) (string, error) {
	c.junk++
	return c.toSMTP(verb, "", "NOOP\r\n")
}

func (c *Conn) verifyCommand(_, argument string) (string, error) {
	c.junk++
	if argument == "" {
		return "", c.say(replyArgument)
	}
	return "", c.say(replyVerify)
}

// startTLSCommand is RFC 3207. The state of the dialog begins anew; go-smtp is
// told by the EHLO that must follow.
func (c *Conn) startTLSCommand(_, argument string) (string, error) {
	switch {
	case argument != "":
		return "", c.say(replyNoArgument)
	case c.gate.config.TLS == nil:
		return "", c.say(replyNotHere)
	case c.tls != nil:
		return "", c.say(replyTLSTwice)
	case c.hello == "":
		return "", c.say(replyHelloFirst)
	}
	// Octets that came before our 220 are plaintext, put there by somebody who
	// hopes that they count as sent under TLS.
	if n, known := c.wire.arrived(); c.r < c.w || known && n > c.wire.taken {
		return "", c.sayLast(replyPipelined)
	}
	if err := c.say(replyStartTLS); err != nil {
		return "", err
	}
	if err := c.flush(); err != nil {
		return "", err
	}
	c.mu.Lock()
	if !c.dead {
		_ = c.wire.SetDeadline(time.Now().Add(c.gate.limits.HandshakeTimeout))
	}
	c.mu.Unlock()
	c.wire.readRecords()
	config, asked := c.gate.config.TLS, c.gate.asks(c.client)
	if asked {
		config = c.gate.asking
	}
	t := tls.Server(c.wire, config)
	if err := t.Handshake(); err != nil {
		c.gate.stats.HandshakeFails.Add(1)
		if asked {
			c.gate.spared.add(c.gate.groupOf(c.client))
		}
		c.gate.log.Info("TLS handshake failed", "client", c.client, "err", err)
		c.die()
		return "", net.ErrClosed
	}
	c.tls, c.stream = t, t
	c.hello, c.extended = "", false
	c.endTransaction()
	return "", nil
}
