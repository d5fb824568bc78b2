// Package deliverytest has what tests of delivery deliver to: a network in
// memory and a primary that can be told to refuse, hang, drop or lie at every
// stage of a conversation, and that records every octet and every dot.
package deliverytest

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"
)

// The stages of a conversation at which a Primary asks its Answer.
const (
	Banner    = "banner"
	Hello     = "EHLO" // also HELO
	StartTLS  = "STARTTLS"
	Handshake = "handshake"
	Mail      = "MAIL"
	Rcpt      = "RCPT"
	Data      = "DATA"
	Body      = "body"
	Dot       = "dot"
	Reset     = "RSET"
	Quit      = "QUIT"
	XClient   = "XCLIENT"
)

// Answers other than a reply. Forget and those below see what came in one go
// with the line.
const (
	Hang    = "<hang>"    // say nothing more, keep the connection
	Drop    = "<drop>"    // close the connection
	Sever   = "<sever>"   // reset the connection (on a Pipe only)
	Leave   = "<leave>"   // the usual reply, and close behind it
	Line    = "<line>"    // a line that does not end, until the client closes
	Lines   = "<lines>"   // a reply that does not end, until the client closes
	Tarpit  = "<tarpit>"  // the usual reply, an octet each TarpitPace
	Forget  = "<forget>"  // the usual reply, and what was sent behind the line is lost
	Scold   = "<scold>"   // the usual reply; if more was sent behind the line, 554 for that, and close
	Enforce = "<enforce>" // the usual reply; if more was sent behind the line, 554 in its place, and close
)

// TarpitPace is how long an octet takes.
const TarpitPace = 10 * time.Second

// What marks the answers of Unasked and Last.
const (
	spoken = "<unasked>"
	last   = "<last>"
)

// Last is an answer: text, and close behind it.
func Last(text string) string { return last + text }

// Unasked is an answer at Body: text is said in the middle of the content, which
// is then read on, to its dot, a second later. Of content that is longer than a
// Pipe holds the client cannot have sent the dot by then.
func Unasked(text string) string { return spoken + text }

// A Received is a message whose final dot came.
type Received struct {
	Mail   string   // the MAIL command line
	To     []string // the RCPT command lines that got a 2yz
	Octets []byte   // the content, dots unstuffed, without the final dot
	Reply  string   // what the dot was answered
	TLS    bool
	Client string // the last XCLIENT command line before it, "" for none
}

// A Primary is a fake mail server.
type Primary struct {
	// Extensions are the lines of the EHLO reply behind the first. STARTTLS is
	// added when TLS is set.
	Extensions []string
	TLS        *tls.Config
	// DotAlone is for a primary behind a firewall that sees a final dot only at
	// the end of what it has got: any other is content.
	DotAlone bool
	// Answer is asked at each stage with the command line; "" is the usual
	// reply. What it returns is sent with a CRLF behind it, except Hang and the
	// others of its kind. At Body it is asked before the content is read; there Hang stops reading
	// until the client closes, Tarpit reads an octet each TarpitPace (both on a Pipe
	// only), and anything else is said in the middle of the content, before the
	// connection is closed.
	Answer func(stage, line string) string

	mu       sync.Mutex
	received []Received
	lines    []string // every command line, as it came
	sessions int
	poured   int // octets of Line and Lines that were written
	onDot    func(Received)
}

// OnDot has f called for each final dot, before it is answered.
func (p *Primary) OnDot(f func(Received)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.onDot = f
}

// SetAnswer replaces Answer while the primary serves.
func (p *Primary) SetAnswer(f func(stage, line string) string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.Answer = f
}

// Received returns the messages whose final dot came, answered or not.
func (p *Primary) Received() []Received {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.received)
}

// Lines returns every command line so far.
func (p *Primary) Lines() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.lines)
}

// Sessions returns how many connections were served.
func (p *Primary) Sessions() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sessions
}

// Poured returns how many octets of endless answers were written.
func (p *Primary) Poured() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.poured
}

// session is one connection being served.
type session struct {
	p      *Primary
	raw    net.Conn
	nc     net.Conn // raw, or TLS over it
	r      *bufio.Reader
	secure bool
	mail   string
	to     []string
	client string
	greets bool // EHLO is due
}

// Serve speaks to one client until either side closes.
func (p *Primary) Serve(nc net.Conn) {
	defer nc.Close()
	p.mu.Lock()
	p.sessions++
	p.mu.Unlock()
	s := &session{p: p, raw: nc, nc: nc, r: bufio.NewReader(nc)}
	if _, ok := s.reply(Banner, "", "220 primary.test ESMTP"); !ok {
		return
	}
	for {
		line, err := s.r.ReadString('\n')
		if err != nil {
			return
		}
		line = strings.TrimRight(line, "\r\n")
		p.mu.Lock()
		p.lines = append(p.lines, line)
		p.mu.Unlock()
		verb, _, _ := strings.Cut(strings.ToUpper(line), " ")
		if !s.command(verb, line) {
			return
		}
	}
}

func (s *session) command(verb, line string) bool {
	switch verb {
	case "EHLO":
		s.greets = false
		lines := slices.Clone(s.p.Extensions)
		if s.p.TLS != nil && !s.secure {
			lines = append(lines, "STARTTLS")
		}
		_, ok := s.reply(Hello, line, multiline(append([]string{"primary.test"}, lines...)))
		return ok
	case "HELO":
		_, ok := s.reply(Hello, line, "250 primary.test")
		return ok
	case "STARTTLS":
		return s.startTLS(line)
	case "XCLIENT":
		usual := "220 primary.test ESMTP"
		if s.mail != "" {
			usual = "503 5.5.1 a transaction is open"
		}
		r, ok := s.reply(XClient, line, usual)
		if strings.HasPrefix(r, "220") {
			s.client, s.greets = line, true
		}
		return ok
	case "MAIL":
		usual := "250 2.1.0 sender ok"
		if s.greets {
			usual = "503 5.5.1 EHLO first"
		}
		r, ok := s.reply(Mail, line, usual)
		if strings.HasPrefix(r, "2") {
			s.mail, s.to = line, nil
		}
		return ok
	case "RCPT":
		usual := "250 2.1.5 recipient ok"
		if s.mail == "" {
			usual = "503 5.5.1 MAIL first"
		}
		r, ok := s.reply(Rcpt, line, usual)
		if strings.HasPrefix(r, "2") {
			s.to = append(s.to, line)
		}
		return ok
	case "DATA":
		usual := "354 go on"
		if len(s.to) == 0 {
			usual = "554 5.5.1 no valid recipients"
		}
		r, ok := s.reply(Data, line, usual)
		if !ok || !strings.HasPrefix(r, "354") {
			return ok
		}
		return s.content()
	case "RSET":
		s.mail, s.to = "", nil
		_, ok := s.reply(Reset, line, "250 2.0.0 reset")
		return ok
	case "QUIT":
		s.reply(Quit, line, "221 2.0.0 bye")
		return false
	}
	_, ok := s.reply("other", line, "500 5.5.2 what?")
	return ok
}

// content reads up to the final dot.
func (s *session) content() bool {
	switch answer := s.ask(Body, ""); answer {
	case "":
	case Hang:
		s.unread()
		return false
	case Tarpit:
		s.sip()
		return false
	default:
		_, _ = s.r.Peek(10)
		text, unasked := strings.CutPrefix(answer, spoken)
		switch {
		case unasked:
			_, _ = io.WriteString(s.nc, text+"\r\n")
			time.Sleep(time.Second)
		case answer == Drop:
			return false
		case s.end(answer):
			return false
		default:
			_, _ = io.WriteString(s.nc, answer+"\r\n")
			return false
		}
	}
	var octets bytes.Buffer
	for {
		line, err := s.r.ReadBytes('\n')
		if err != nil {
			return false
		}
		if string(line) == ".\r\n" && !(s.p.DotAlone && s.r.Buffered() > 0) {
			break
		}
		if line[0] == '.' {
			line = line[1:]
		}
		octets.Write(line)
	}
	message := Received{Mail: s.mail, To: s.to, Octets: octets.Bytes(), TLS: s.secure, Client: s.client}
	s.mail, s.to = "", nil
	s.p.mu.Lock()
	position := len(s.p.received)
	s.p.received = append(s.p.received, message)
	onDot := s.p.onDot
	s.p.mu.Unlock()
	if onDot != nil {
		onDot(message)
	}
	r, ok := s.reply(Dot, "", "250 2.0.0 taken")
	s.p.mu.Lock()
	s.p.received[position].Reply = r
	s.p.mu.Unlock()
	return ok
}

// unread waits for the client to close without reading what it sends.
func (s *session) unread() {
	if e, ok := s.raw.(*end); ok {
		e.in.awaitFinished()
	}
}

// sip reads an octet each TarpitPace until the client closes.
func (s *session) sip() {
	e, ok := s.raw.(*end)
	for ok && !e.in.ended() {
		_, _ = e.in.read(make([]byte, 1))
		time.Sleep(TarpitPace)
	}
}

// end gives the answers that are about the connection, and reports whether this
// was one.
func (s *session) end(answer string) bool {
	switch answer {
	case Sever:
		if e, ok := s.raw.(*end); ok {
			e.sever()
		}
	case Line:
		s.pour("250 ", strings.Repeat("x", 1000))
	case Lines:
		s.pour("", "250-and more\r\n")
	default:
		return false
	}
	return true
}

// pour writes first, and then more until the client closes.
func (s *session) pour(first, more string) {
	text := first
	for {
		n, err := io.WriteString(s.nc, text)
		s.p.mu.Lock()
		s.p.poured += n
		s.p.mu.Unlock()
		if err != nil {
			return
		}
		text = more
	}
}

func (s *session) startTLS(line string) bool {
	r, ok := s.reply(StartTLS, line, "220 2.0.0 go on")
	if !ok || !strings.HasPrefix(r, "220") {
		return ok
	}
	switch answer := s.ask(Handshake, ""); answer {
	case "":
	case Hang:
		_, _ = io.Copy(io.Discard, s.nc)
		return false
	case Drop:
		return false
	default:
		if !s.end(answer) {
			_, _ = io.WriteString(s.nc, answer+"\r\n")
		}
		return false
	}
	secure := tls.Server(s.nc, s.p.TLS)
	if err := secure.Handshake(); err != nil {
		return false
	}
	s.nc, s.r, s.secure = secure, bufio.NewReader(secure), true
	s.mail, s.to = "", nil
	return true
}

func (s *session) ask(stage, line string) string {
	s.p.mu.Lock()
	answer := s.p.Answer
	s.p.mu.Unlock()
	if answer == nil {
		return ""
	}
	return answer(stage, line)
}

// reply answers a stage; false ends the session.
func (s *session) reply(stage, line, usual string) (string, bool) {
	answer := s.ask(stage, line)
	if s.end(answer) {
		return answer, false
	}
	if text, ok := strings.CutPrefix(answer, last); ok {
		_, _ = io.WriteString(s.nc, text+"\r\n")
		return text, false
	}
	switch answer {
	case Drop:
		return Drop, false
	case Leave:
		_, _ = io.WriteString(s.nc, usual+"\r\n")
		return usual, false
	case Tarpit:
		for _, octet := range []byte(usual + "\r\n") {
			time.Sleep(TarpitPace)
			if _, err := s.nc.Write([]byte{octet}); err != nil {
				return Tarpit, false
			}
		}
		return usual, true
	case Hang:
		_, _ = io.Copy(io.Discard, s.nc)
		return Hang, false
	case Forget:
		_, _ = s.r.Discard(s.r.Buffered())
		answer = usual
	case Scold, Enforce:
		const scolding = "554 5.5.0 SMTP protocol synchronization"
		more := s.r.Buffered() > 0
		switch {
		case more && answer == Enforce:
			_, _ = io.WriteString(s.nc, scolding+"\r\n")
			return scolding, false
		case more:
			_, _ = io.WriteString(s.nc, usual+"\r\n"+scolding+"\r\n")
			return usual, false
		}
		answer = usual
	case "":
		answer = usual
	}
	if answer == "" {
		return "", true
	}
	_, err := io.WriteString(s.nc, answer+"\r\n")
	return answer, err == nil
}

func multiline(lines []string) string {
	var b strings.Builder
	for i, l := range lines {
		switch {
		case i == len(lines)-1:
			b.WriteString("250 " + l)
		default:
			b.WriteString("250-" + l + "\r\n")
		}
	}
	return b.String()
}
