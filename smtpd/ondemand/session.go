package ondemand

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/emersion/go-sasl"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A session is one connection up to where it turns. It is for one goroutine, wake aside.
//
// Invariant: user is not "" only under TLS.
type session struct {
	s       *Server
	conn    net.Conn // the socket
	wire    net.Conn // the same, or tls
	tls     *tls.Conn
	in      *bufio.Reader
	client  netip.Addr
	counted netip.Prefix // as Server.perClient has it; zero where it is not counted
	log     *slog.Logger

	hello                   string
	user                    string        // who it is, for the log; "" until that is known
	domains                 []mail.Domain // that it may call for
	commands, errors, wrong int
	over                    bool // nothing more is said

	// turned says that the connection is its Mail's. Written by the session's goroutine,
	// under Server.mu.
	turned bool
}

func newSession(s *Server, conn net.Conn) *session {
	one := &session{s: s, conn: conn, wire: conn, in: bufio.NewReaderSize(conn, lineMax)}
	if a, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		one.client = a.Addr().Unmap()
	}
	one.log = s.log.With("client", one.client)
	return one
}

// wake has a read that waits look at what has changed. The caller has Server.mu, and the
// session was not turned.
func (c *session) wake() { _ = c.conn.SetReadDeadline(time.Unix(1, 0)) }

// run holds the dialogue until it is over, or the roles turn.
func (c *session) run() {
	c.sayText(fmt.Sprintf("220 %s ODMR Holdfast\r\n", c.s.c.Hostname))
	for !c.over {
		line, ok := c.line()
		if !ok {
			return
		}
		if c.commands++; c.commands > commandsMax || c.errors >= errorsMax {
			c.leave(replyErrors)
			return
		}
		c.command(line)
	}
}

// line reads one command. False: the connection is over.
func (c *session) line() (string, bool) {
	if c.s.isDraining() {
		c.leave(replyDraining)
		return "", false
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(commandTimeout))
	if c.s.isDraining() { // wake came before the deadline, and was overwritten
		c.leave(replyDraining)
		return "", false
	}
	raw, err := c.in.ReadSlice('\n')
	var late net.Error
	switch {
	case err == nil:
		return strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), "\r"), true
	case errors.Is(err, bufio.ErrBufferFull):
		c.leave(replyLineLong)
	case c.s.isDraining():
		c.leave(replyDraining)
	case errors.As(err, &late) && late.Timeout():
		c.leave(replyTimeout)
	}
	return "", false
}

func (c *session) command(line string) {
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		c.say(replyControl)
		return
	}
	verb, argument, _ := strings.Cut(line, " ")
	argument = strings.Trim(argument, " ")
	switch strings.ToUpper(verb) {
	case "EHLO":
		c.greet(argument)
	case "STARTTLS":
		c.startTLS(argument)
	case "AUTH":
		c.auth(argument)
	case "ATRN":
		c.atrn(argument)
	case "NOOP":
		c.say(replyOK)
	case "RSET":
		if argument != "" {
			c.say(replyArgument)
			return
		}
		c.say(replyOK)
	case "QUIT":
		c.leave(replyBye)
	case "HELO", "MAIL", "RCPT", "DATA", "VRFY", "EXPN", "HELP", "ETRN", "TURN":
		c.say(replyNotHere)
	case "BDAT", "GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT":
		c.leave(replyNotHere) // What follows is not to be read as commands.
	default:
		c.say(replyUnknown)
	}
}

func (c *session) greet(name string) {
	if name == "" || len(name) > 255 {
		c.say(replyArgument)
		return
	}
	c.hello = name
	lines := []string{c.s.c.Hostname, "ENHANCEDSTATUSCODES"}
	switch {
	case c.tls == nil:
		lines = append(lines, "STARTTLS")
	default:
		mechanisms := "AUTH PLAIN"
		if _, ok := c.key(); ok {
			mechanisms += " EXTERNAL"
		}
		lines = append(lines, mechanisms, "ATRN")
	}
	var text strings.Builder
	for i, line := range lines {
		separator := '-'
		if i == len(lines)-1 {
			separator = ' '
		}
		fmt.Fprintf(&text, "250%c%s\r\n", separator, line)
	}
	c.sayText(text.String())
}

// startTLS is RFC 3207. What was said before is forgotten.
func (c *session) startTLS(argument string) {
	switch {
	case argument != "":
		c.say(replyArgument)
		return
	case c.tls != nil:
		c.say(replyTLSTwice)
		return
	case c.hello == "":
		c.say(replyHelloFirst)
		return
	case c.in.Buffered() > 0: // in the clear, and perhaps from somebody else
		c.leave(replyPipelined)
		return
	}
	c.say(replyStartTLS)
	if c.over {
		return
	}
	t := tls.Server(c.conn, c.s.tls)
	_ = c.conn.SetDeadline(time.Now().Add(handshakeTimeout))
	if err := t.HandshakeContext(c.s.base); err != nil {
		c.log.Info("TLS handshake failed", "err", err)
		c.over = true
		return
	}
	c.tls, c.wire, c.hello = t, t, ""
	c.in.Reset(t)
}

// key returns SHA-256 of the key of the certificate that the client showed.
func (c *session) key() (key [32]byte, ok bool) {
	if c.tls == nil {
		return key, false
	}
	shown := c.tls.ConnectionState().PeerCertificates
	if len(shown) == 0 {
		return key, false
	}
	return sha256.Sum256(shown[0].RawSubjectPublicKeyInfo), true
}

// auth is RFC 4954.
func (c *session) auth(argument string) {
	name, initial, _ := strings.Cut(argument, " ")
	switch {
	case c.tls == nil:
		c.say(replyEncrypt)
		return
	case c.hello == "":
		c.say(replyHelloFirst)
		return
	case c.user != "":
		c.say(replyAuthTwice)
		return
	case name == "":
		c.say(replyArgument)
		return
	case c.s.failures.barred(clientOf(c.client)):
		c.s.stats.AuthBarred.Add(1)
		c.leave(replyFailures)
		return
	}
	mechanism := c.mechanism(name)
	if mechanism == nil {
		c.say(replyMechanism)
		return
	}
	var response []byte
	if initial = strings.Trim(initial, " "); initial != "" {
		var ok bool
		if response, ok = decode(initial); !ok {
			c.say(replyEncoding)
			return
		}
	}
	for {
		challenge, done, err := mechanism.Next(response)
		if err != nil || done {
			c.judged(err)
			return
		}
		c.sayText("334 " + base64.StdEncoding.EncodeToString(challenge) + "\r\n")
		if c.over {
			return
		}
		line, ok := c.line()
		if !ok {
			return
		}
		if line == "*" {
			c.say(replyCancelled)
			return
		}
		if response, ok = decode(line); !ok {
			c.say(replyEncoding)
			return
		}
	}
}

// decode reads a response of a client; "=" is an empty one (RFC 4954 section 4). It is
// not nil, which would be none at all.
func decode(s string) ([]byte, bool) {
	if s == "=" {
		return []byte{}, true
	}
	b, err := base64.StdEncoding.DecodeString(s)
	if b == nil {
		b = []byte{}
	}
	return b, err == nil
}

// errWrong: who that is has no mail here. Any other error is temporary, or malformed.
var (
	errWrong     = errors.New("wrong credentials")
	errTemporary = errors.New("cannot be told now")
)

// mechanism returns the mechanism of a name; nil where there is none.
func (c *session) mechanism(name string) sasl.Server {
	switch strings.ToUpper(name) {
	case "PLAIN":
		return sasl.NewPlainServer(func(identity, user, password string) error {
			if identity != "" && identity != user || user == "" {
				return errWrong
			}
			mine, err := c.s.login(user, password)
			if err != nil {
				return fmt.Errorf("%w: %w", errTemporary, err)
			}
			return c.become(user, mine)
		})
	case "EXTERNAL":
		key, ok := c.key()
		if !ok {
			return nil
		}
		return sasl.NewExternalServer(func(identity string) error {
			if identity != "" { // A key is no name, and acts for no other.
				return errWrong
			}
			return c.become("key "+hex.EncodeToString(key[:]), c.s.c.Mail.ByKey(key))
		})
	}
	return nil
}

// become notes who the caller is. Who may call for nothing is nobody, unless this node
// may just not know it.
func (c *session) become(user string, mine []mail.Domain) error {
	if len(mine) > 0 {
		c.user, c.domains = user, mine
		return nil
	}
	if err := c.s.c.Mail.Ready(); err != nil {
		return fmt.Errorf("%w: %w", errTemporary, err)
	}
	return errWrong
}

// judged answers the end of an authentication.
func (c *session) judged(err error) {
	switch {
	case err == nil:
		c.log.Info("caller authenticated", "user", c.user)
		c.say(replyKnown)
	case errors.Is(err, errTemporary):
		c.log.Warn("caller not authenticated", "err", err)
		c.say(replyAuthLater)
	default:
		// What is malformed is counted as well: it tells as much to who tries.
		c.s.stats.AuthFailed.Add(1)
		c.s.failures.note(clientOf(c.client))
		c.log.Warn("authentication failed", "err", err)
		if c.wrong++; c.wrong >= wrongMax {
			c.leave(replyWrong)
			return
		}
		c.say(replyWrong)
	}
}

// atrn is RFC 2645 section 5.2.1.
func (c *session) atrn(argument string) {
	switch {
	case c.tls == nil:
		c.say(replyTLSFirst)
		return
	case c.user == "":
		c.say(replyAuthFirst)
		return
	}
	wanted, ok := c.wanted(argument)
	switch {
	case !ok:
		c.say(replyArgument)
		return
	case c.in.Buffered() > 0:
		// The next thing to be said is said by the client as a server, once it has read
		// our 250. What it sent before is for nobody.
		c.leave(replyPipelined)
		return
	}
	for _, d := range wanted {
		if !slices.Contains(c.domains, d) {
			c.log.Info("ATRN refused", "user", c.user, "domain", d)
			c.say(replyNotAllowed)
			return
		}
	}
	if !c.s.claim(wanted) {
		c.say(replyBusy)
		return
	}
	defer c.s.release(wanted)
	ctx, cancel := context.WithTimeout(c.s.base, callTimeout)
	waiting, err := c.s.c.Mail.Call(ctx, wanted)
	cancel()
	switch {
	case err != nil:
		c.log.Warn("ATRN not done", "user", c.user, "err", err)
		c.say(replyNotNow)
		return
	case len(waiting) == 0:
		c.say(replyNoMail)
		return
	}
	if !c.s.turn(c) {
		c.leave(replyDraining)
		return
	}
	c.say(replyTurning)
	if c.over {
		_ = c.conn.Close()
		return
	}
	c.over = true
	_ = c.conn.SetDeadline(time.Time{})
	c.s.stats.Calls.Add(1)
	c.log.Info("ATRN", "user", c.user, "domains", waiting)
	c.s.c.Mail.Deliver(Turned{Conn: c.conn, TLS: c.tls, Client: c.client}, waiting)
}

// wanted reads the argument of ATRN: a list of domains, without one all that the caller
// may call for.
func (c *session) wanted(argument string) ([]mail.Domain, bool) {
	if argument == "" {
		return c.domains, true
	}
	var all []mail.Domain
	for text := range strings.SplitSeq(argument, ",") {
		d, err := mail.ParseDomain(strings.Trim(text, " "))
		if err != nil || len(all) == domainsMax {
			return nil, false
		}
		if !slices.Contains(all, d) {
			all = append(all, d)
		}
	}
	return all, true
}

func (c *session) say(r mail.Reply) {
	if r.Code/100 == 5 {
		c.errors++
	}
	c.sayText(r.String() + "\r\n")
}

func (c *session) sayText(text string) {
	if c.over {
		return
	}
	_ = c.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
	if _, err := io.WriteString(c.wire, text); err != nil {
		c.over = true
	}
}

// leave says a last reply and ends the connection. The client may be sending still, and
// a close with its octets unread would take the reply with it; so they are read for a
// moment.
func (c *session) leave(r mail.Reply) {
	if r.Code == replyNotReady.Code { // RFC 5321 section 4.2.2
		r.Text = c.s.c.Hostname + " " + r.Text
	}
	c.say(r)
	if c.over {
		return
	}
	c.over = true
	if c.tls != nil {
		_ = c.tls.CloseWrite()
	} else if half, ok := c.conn.(interface{ CloseWrite() error }); ok {
		_ = half.CloseWrite()
	}
	_ = c.conn.SetReadDeadline(time.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, c.conn, lineMax)
}
