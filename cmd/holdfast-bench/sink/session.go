package sink

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// errEnd ends a session whose last word has been said.
var errEnd = errors.New("session ended")

// errLineEnding is content or a command with a CR or LF that is not CRLF.
var errLineEnding = errors.New("a line does not end in CRLF")

type session struct {
	srv  *Server
	conn net.Conn
	in   *bufio.Reader
	out  *bufio.Writer

	greeted, secure bool
	mailGiven       bool
	reversePath     string
	recipients      []string
	notify          []string // that each recipient came with, "" for none
	// owed is of the message taken last, until something comes that was sent behind
	// its 250; told says that the 250 has left.
	owed []ledger.Arrival
	told bool
}

func newSession(s *Server, conn net.Conn) *session {
	return &session{srv: s, conn: conn, in: bufio.NewReaderSize(conn, 64<<10), out: bufio.NewWriter(conn)}
}

func (s *session) run() {
	defer s.leaveUnread()
	err := s.reply(Banner, "220 "+s.srv.o.Hostname+" ESMTP holdfast-bench sink")
	for err == nil {
		err = s.command()
	}
	if errors.Is(err, errEnd) {
		if err = s.flush(); err == nil {
			s.owed = nil
		}
	}
	if err != nil && !errors.Is(err, io.EOF) {
		s.srv.log.Debug("session ended", "peer", s.conn.RemoteAddr(), "cause", err)
	}
}

// leaveUnread counts what was taken last, when nothing more came.
func (s *session) leaveUnread() {
	s.srv.unread.Add(int64(len(s.owed)))
	if s.srv.o.Unread == nil {
		return
	}
	for _, a := range s.owed {
		s.srv.o.Unread(ledger.Unread{Recipient: a.Recipient, QueueID: a.QueueID, Arrived: a.At, At: time.Now()})
	}
}

// reply says text, unless a fault strikes at stage, with what is asked for recipients.
func (s *session) reply(stage Stage, text string, recipients ...string) error {
	if err := s.fault(stage, recipients...); err != nil {
		return err
	}
	s.say(text)
	return nil
}

// fault misbehaves if the plan says so. An error means that the stage's reply
// must not be said.
func (s *session) fault(stage Stage, recipients ...string) error {
	switch s.srv.o.Faults.at(stage) {
	case Refuse:
		s.refuse(refusal(stage, "55"), recipients...)
		return s.afterRefusal(stage)
	case Defer:
		s.say(refusal(stage, "45"))
		return s.afterRefusal(stage)
	case Hang:
		return s.hang()
	case Drop:
		return errors.New("drop at " + string(stage))
	}
	return nil
}

// errRefused says that a fault's refusal stands in place of the reply.
var errRefused = errors.New("refused")

func (s *session) afterRefusal(stage Stage) error {
	if stage == Banner || stage == Quit {
		return errEnd
	}
	return errRefused
}

// refusal is the reply of a fault; class is "45" or "55".
func refusal(stage Stage, class string) string {
	code := class + "1"
	if stage == Banner || stage == EHLO || stage == Data {
		code = class + "4"
		if class == "45" {
			code = "421"
		}
	}
	return fmt.Sprintf("%s %s.3.0 told to refuse at %s", code, class[:1], stage)
}

func (s *session) say(line string) {
	s.out.WriteString(line)
	s.out.WriteString("\r\n")
}

// flush sends what was said.
func (s *session) flush() error {
	if err := s.out.Flush(); err != nil {
		return err
	}
	s.told = true
	return nil
}

// hang keeps the connection and says nothing, until the peer or Close ends it.
// What the peer sends is read, so that the end is seen.
func (s *session) hang() error {
	_ = s.flush()
	s.conn.SetDeadline(time.Time{})
	_, err := io.Copy(io.Discard, s.in)
	return errors.Join(errors.New("hung"), err)
}

func (s *session) command() error {
	if s.in.Buffered() == 0 {
		if err := s.flush(); err != nil {
			return err
		}
	}
	s.conn.SetDeadline(time.Now().Add(idleMax))
	line, err := s.line()
	if err != nil {
		return err
	}
	verb, rest, _ := strings.Cut(line, " ")
	switch strings.ToUpper(verb) {
	case "EHLO", "HELO":
		err = s.hello(strings.ToUpper(verb) == "EHLO")
	case "STARTTLS":
		err = s.starttls()
	case "MAIL":
		err = s.mail(rest)
	case "RCPT":
		err = s.rcpt(rest)
	case "DATA":
		err = s.data(rest)
	case "RSET":
		s.reset()
		s.say("250 2.0.0 ok")
	case "NOOP":
		s.say("250 2.0.0 ok")
	case "QUIT":
		if err = s.reply(Quit, "221 2.0.0 bye"); err == nil {
			err = errEnd
		}
	default:
		s.say("500 5.5.2 no such command")
	}
	if errors.Is(err, errRefused) {
		return nil
	}
	return err
}

// line reads a command line, which must end in CRLF.
func (s *session) line() (string, error) {
	line, err := s.in.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	if s.told { // else it came with the dot, and says nothing of what was read
		s.owed = nil
	}
	if len(line) > lineMax || !bytes.HasSuffix(line, []byte("\r\n")) || bytes.IndexByte(line, '\r') != len(line)-2 {
		s.violation("command line", errLineEnding)
		s.say("500 5.5.2 a command line ends in CRLF")
		return "", errEnd
	}
	return string(line[:len(line)-2]), nil
}

func (s *session) violation(where string, err error) {
	s.srv.violation.Add(1)
	s.srv.log.Warn("violation", "peer", s.conn.RemoteAddr(), "where", where, "cause", err,
		"reverse_path", s.reversePath, "recipients", s.recipients)
}

func (s *session) hello(extended bool) error {
	s.reset()
	if !extended {
		if err := s.reply(EHLO, "250 "+s.srv.o.Hostname); err != nil {
			return err
		}
		s.greeted = true
		return nil
	}
	offers := []string{s.srv.o.Hostname, "PIPELINING", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES",
		"SIZE " + strconv.FormatInt(s.srv.o.SizeMax, 10)}
	if s.srv.o.TLS != nil && !s.secure {
		offers = append(offers, "STARTTLS")
	}
	var b strings.Builder
	for i, offer := range offers {
		if i < len(offers)-1 {
			b.WriteString("250-" + offer + "\r\n")
		} else {
			b.WriteString("250 " + offer)
		}
	}
	if err := s.reply(EHLO, b.String()); err != nil {
		return err
	}
	s.greeted = true
	return nil
}

func (s *session) starttls() error {
	if s.srv.o.TLS == nil || s.secure {
		s.say("503 5.5.1 not offered")
		return nil
	}
	if s.in.Buffered() > 0 {
		s.violation("starttls", errors.New("octets behind STARTTLS"))
		return errEnd
	}
	if err := s.reply(STARTTLS, "220 2.0.0 go ahead"); err != nil {
		return err
	}
	if err := s.out.Flush(); err != nil {
		return err
	}
	secured := tls.Server(s.conn, s.srv.o.TLS)
	if err := secured.Handshake(); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	s.srv.tls.Add(1)
	s.conn, s.secure, s.greeted = secured, true, false
	s.in.Reset(secured)
	s.out.Reset(secured)
	s.reset()
	return nil
}

func (s *session) reset() {
	s.mailGiven, s.reversePath, s.recipients, s.notify = false, "", nil, nil
}

func (s *session) mail(rest string) error {
	switch {
	case !s.greeted:
		s.say("503 5.5.1 EHLO first")
		return nil
	case s.mailGiven:
		s.say("503 5.5.1 there is a transaction already")
		return nil
	}
	path, params, ok := parsePath(rest, "FROM:")
	if !ok {
		s.say("501 5.5.4 want MAIL FROM:<reverse-path>")
		return nil
	}
	for _, p := range params {
		name, value, _ := strings.Cut(p, "=")
		switch strings.ToUpper(name) {
		case "SIZE":
			if n, err := strconv.ParseInt(value, 10, 64); err != nil || n > s.srv.o.SizeMax {
				s.say("552 5.3.4 too big")
				return nil
			}
		case "BODY", "SMTPUTF8", "RET", "ENVID":
		default:
			s.violation("mail", fmt.Errorf("parameter %s was not offered", p))
			s.say("555 5.5.4 no such parameter")
			return nil
		}
	}
	if err := s.reply(Mail, "250 2.1.0 ok"); err != nil {
		return err
	}
	s.mailGiven, s.reversePath = true, path
	return nil
}

func (s *session) rcpt(rest string) error {
	if !s.mailGiven {
		s.say("503 5.5.1 MAIL first")
		return nil
	}
	path, params, ok := parsePath(rest, "TO:")
	if !ok || path == "" {
		s.say("501 5.5.4 want RCPT TO:<forward-path>")
		return nil
	}
	notify := ""
	for _, p := range params {
		switch name, value, _ := strings.Cut(p, "="); strings.ToUpper(name) {
		case "NOTIFY":
			notify = value
		case "ORCPT":
		default:
			s.violation("rcpt", fmt.Errorf("parameter %s was not offered", p))
			s.say("555 5.5.4 no such parameter")
			return nil
		}
	}
	if s.srv.o.Refuse != nil && s.srv.o.Refuse(Rcpt, path) {
		s.refuse("550 5.1.1 no such mailbox", path)
		return nil
	}
	if err := s.reply(Rcpt, "250 2.1.5 ok", path); err != nil {
		return err
	}
	s.recipients, s.notify = append(s.recipients, path), append(s.notify, notify)
	return nil
}

// refuse refuses recipients for good, or what was said before any was named.
func (s *session) refuse(reply string, recipients ...string) {
	for _, r := range recipients {
		if s.srv.o.Refused == nil {
			break
		}
		err := s.srv.o.Refused(ledger.Refusal{Recipient: r, Reply: reply, Peer: s.conn.RemoteAddr().String(), At: time.Now()})
		if err != nil {
			s.srv.log.Error("record refusal", "cause", err)
			s.say("451 4.3.0 the ledger cannot be written")
			return
		}
	}
	s.say(reply)
}

// parsePath splits "FROM:<path> P1 P2=v".
func parsePath(rest, prefix string) (path string, params []string, ok bool) {
	if len(rest) < len(prefix) || !strings.EqualFold(rest[:len(prefix)], prefix) {
		return "", nil, false
	}
	rest = rest[len(prefix):]
	end := pathEnd(rest)
	if !strings.HasPrefix(rest, "<") || end < 0 {
		return "", nil, false
	}
	return rest[1:end], strings.Fields(rest[end+1:]), true
}

// pathEnd finds the '>' that ends a path: the first that is not quoted.
func pathEnd(s string) int {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == '>' && !quoted:
			return i
		}
	}
	return -1
}

func (s *session) data(rest string) error {
	switch {
	case rest != "":
		s.say("501 5.5.4 DATA has no argument")
		return nil
	case len(s.recipients) == 0:
		s.say("503 5.5.1 RCPT first")
		return nil
	}
	if err := s.reply(Data, "354 go ahead", s.recipients...); err != nil {
		s.reset()
		return err
	}
	if err := s.flush(); err != nil {
		return err
	}
	s.conn.SetDeadline(time.Now().Add(contentTime))
	c, err := s.content()
	if err != nil {
		return err
	}
	s.owed = nil
	return s.dot(c)
}

// dot decides about a message that is here completely.
func (s *session) dot(c content) error {
	defer s.reset()
	if pace := time.Duration(s.srv.pace.Load()); pace > 0 {
		s.srv.paced.Add(1)
		timer := time.NewTimer(pace)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-s.srv.closing:
			return ErrClosed
		}
	}
	refuse := c.broken
	if refuse == nil && s.srv.o.Inspect != nil && c.whole {
		refuse = s.srv.o.Inspect(s.reversePath, s.recipients, c.octets)
	}
	if refuse != nil {
		s.violation("content", refuse)
		s.say("550 5.6.0 refused: " + refuse.Error())
		return nil
	}
	if c.size > s.srv.o.SizeMax {
		s.say("552 5.3.4 too big")
		return nil
	}
	if s.srv.o.Refuse != nil && slices.ContainsFunc(s.recipients, func(r string) bool { return s.srv.o.Refuse(Dot, r) }) {
		s.refuse("554 5.6.0 not this message", s.recipients...)
		return nil
	}
	if err := s.fault(Dot, s.recipients...); err != nil {
		return err
	}
	s.told = false
	now := time.Now()
	cuts, id := c.cutter.Finish(), c.cutter.QueueID()
	if s.srv.o.Message != nil && c.whole {
		err := s.srv.o.Message(Message{
			ReversePath: s.reversePath, Recipients: s.recipients, Content: c.octets, QueueID: id,
			Peer: s.conn.RemoteAddr().String(), At: now,
		})
		if err != nil {
			s.srv.log.Error("record message", "cause", err)
			s.say("451 4.3.0 it cannot be recorded")
			return nil
		}
	}
	for i, r := range s.recipients {
		arrival := ledger.Arrival{
			Recipient: r, ReversePath: s.reversePath, Cuts: cuts, Notify: &s.notify[i], QueueID: id,
			Peer: s.conn.RemoteAddr().String(), At: now,
		}
		s.owed = append(s.owed, arrival)
		if err := s.srv.o.Arrival(arrival); err != nil {
			s.owed = nil
			s.srv.log.Error("record arrival", "cause", err)
			s.say("451 4.3.0 the ledger cannot be written")
			return nil
		}
	}
	n := s.srv.messages.Add(1)
	s.srv.rcpts.Add(int64(len(s.recipients)))
	s.srv.octets.Add(c.size)
	return s.reply(AfterDot, fmt.Sprintf("250 2.0.0 taken as %d", n))
}
