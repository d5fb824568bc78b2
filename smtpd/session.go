package smtpd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd/gate"
)

// A session is one client's dialog. The arguments that go-smtp gives its
// methods say nothing: what the client wrote comes from the gate.
type session struct {
	server *Server
	conn   *gate.Conn
	log    *slog.Logger

	// The open transaction, or nil.
	tx *transaction
}

// A transaction is what MAIL began.
type transaction struct {
	mail       mailArgument
	recipients []mail.Recipient
	known      map[mailboxKey]struct{} // the same, to find duplicates
	commands   int                     // RCPT commands, duplicates and all
}

// mailboxKey is equal for paths that are the same mailbox.
type mailboxKey struct {
	local  string
	domain mail.Domain
}

// duplicatesMax bounds the RCPT commands of one transaction, as a multiple of
// the recipients: go-smtp keeps something for each of them.
const duplicatesMax = 10

// Mail is the MAIL command.
func (s *session) Mail(string, *smtp.MailOptions) (err error) {
	defer s.contain(&err)
	if err := s.server.queue.Ready(); err != nil {
		s.log.Info("MAIL refused, cannot commit", "err", err)
		return toSMTP(replyNotReady(err))
	}
	m, refusal := parseMail(s.conn.Argument(), s.server.config.MaxMessageSize)
	if refusal.Code != 0 {
		return toSMTP(refusal)
	}
	s.tx = &transaction{mail: m, known: make(map[mailboxKey]struct{})}
	return nil
}

// Rcpt is the RCPT command.
func (s *session) Rcpt(string, *smtp.RcptOptions) (err error) {
	defer s.contain(&err)
	if s.tx == nil {
		return toSMTP(replyTryAgain())
	}
	argument, refusal := parseRcpt(s.conn.Argument(), s.tx.mail.utf8)
	if refusal.Code != 0 {
		return toSMTP(refusal)
	}
	path, domain, refusal := s.recipient(argument.path)
	if refusal.Code != 0 {
		return toSMTP(refusal)
	}
	if s.tx.commands++; s.tx.commands > duplicatesMax*s.server.config.RecipientsMax {
		return toSMTP(replyTooManyRecipients())
	}
	key := mailboxKey{path.Local, domain}
	if _, known := s.tx.known[key]; known {
		return nil // Accepted, and one delivery: the first one's parameters count.
	}
	if len(s.tx.recipients) >= s.server.config.RecipientsMax {
		return toSMTP(replyTooManyRecipients())
	}
	s.tx.known[key] = struct{}{}
	s.tx.recipients = append(s.tx.recipients, mail.Recipient{
		Path: path, Domain: domain, Notify: argument.notify, Original: argument.original,
	})
	return nil
}

// relayDomainPatience bounds the look-up of a relay domain.
const relayDomainPatience = 5 * time.Second

// recipient judges a forward-path.
func (s *session) recipient(text string) (mail.ForwardPath, mail.Domain, mail.Reply) {
	if strings.EqualFold(text, "postmaster") { // RFC 5321 section 4.5.1
		return s.postmaster(text)
	}
	path, err := mail.ParseForwardPath(text, s.tx.mail.utf8)
	if err != nil {
		return mail.ForwardPath{}, "", replyRecipient(err)
	}
	domain := path.Domain()
	ctx, cancel := context.WithTimeout(s.server.base, relayDomainPatience)
	defer cancel()
	taken, err := s.server.queue.RelayDomain(ctx, domain)
	switch {
	case taken:
		return path, domain, mail.Reply{}
	case domain == s.server.hostDomain && strings.EqualFold(path.Local, "postmaster"):
		return s.postmaster(path.Local)
	case err != nil:
		s.log.Info("RCPT deferred, relay domains not certain", "domain", domain, "err", err)
		return mail.ForwardPath{}, "", replyNotReady(err)
	}
	return mail.ForwardPath{}, "", replyNoRelay()
}

// postmaster is the address of whoever answers for this host: that of the first
// relay domain.
func (s *session) postmaster(local string) (mail.ForwardPath, mail.Domain, mail.Reply) {
	domain, ok := s.server.queue.PostmasterDomain()
	if !ok {
		return mail.ForwardPath{}, "", replyTryAgain()
	}
	return mail.ForwardPath{Mailbox: mail.Mailbox{Local: local, Host: string(domain)}}, domain, mail.Reply{}
}

// Data is the message. go-smtp's reader is not used: the gate has the octets,
// in large pieces, and gives go-smtp only the end mark.
func (s *session) Data(io.Reader) (err error) {
	submitted := false
	defer func() {
		if r := recover(); r != nil {
			err = s.panicked(r)
			if submitted { // Whatever it was, the message may be committed.
				s.unknown(errors.New("panic"))
			}
		}
	}()
	tx := s.tx
	if tx == nil || len(tx.recipients) == 0 {
		return toSMTP(replyTryAgain())
	}
	if err := s.server.queue.Ready(); err != nil { // Before the sender sends it all for nothing.
		return toSMTP(replyNotReady(err))
	}
	turn := s.server.turnstiles.of(tx.mail.size).goAhead(s.server.base)
	defer turn.turnstile.giveUp(turn)
	share := reservation{pool: s.server.inFlight}
	defer share.release()
	body, refusal := s.receive(tx, &share)
	if refusal.Code != 0 {
		s.log.Info("message not taken", "from", tx.mail.from.String(), "reply", refusal.String())
		return toSMTP(refusal)
	}
	submitted = true
	return toSMTP(s.submit(turn, s.envelope(tx), body))
}

// receive reads the message. Each piece is taken in only when it was reserved.
func (s *session) receive(tx *transaction, share *reservation) (_ *mail.Body, refusal mail.Reply) {
	want := max(tx.mail.size+gate.BodyRunMax, reservationStep/2)
	body, seen := mail.NewBodyIn(s.server.config.Memory, tx.mail.size), hops{mark: []byte(s.server.config.TraceMark)}
	defer func() {
		if refusal.Code != 0 {
			body.Free() // nobody else has seen it
		}
	}()
	for {
		if need := body.Size() + gate.BodyRunMax; need > want {
			want = max(need, want+reservationStep)
		}
		if !share.atLeast(s.server.base, min(want, share.pool.capacity)) {
			s.server.stats.MemoryRefused.Add(1)
			return nil, replyMemory()
		}
		piece, err := s.conn.NextBody()
		switch {
		case errors.Is(err, io.EOF):
			if seen.looping() {
				s.server.stats.Refused.Add(1)
				return nil, replyLoop()
			}
			return body, mail.Reply{}
		case errors.Is(err, gate.ErrLineTooLong):
			s.server.stats.Refused.Add(1)
			return nil, replyLine()
		case err != nil: // The gate has closed the connection, and said why if it could.
			s.log.Info("message broken off", "size", int64(body.Size()), "err", err)
			return nil, replyAborted()
		case body.Size()+mail.ByteSize(len(piece)) > s.server.config.MaxMessageSize:
			s.server.stats.Refused.Add(1)
			return nil, replyTooLarge()
		}
		seen.write(piece)
		_, _ = body.Write(piece)
	}
}

func (s *session) envelope(tx *transaction) mail.Envelope {
	t := trace(s.conn, s.server.config.Hostname, tx.mail.utf8)
	t.Received = s.server.config.Now().Unix()
	return mail.Envelope{
		From:       tx.mail.from,
		Recipients: tx.recipients,
		Return:     tx.mail.ret,
		EnvelopeID: tx.mail.envID,
		EightBit:   tx.mail.eightBit,
		SMTPUTF8:   tx.mail.utf8,
		Trace:      t,
	}
}

// submit has the message committed and returns what to answer. The reply after
// an unknown outcome goes nowhere, since the connection is closed.
func (s *session) submit(t *turn, e mail.Envelope, body *mail.Body) mail.Reply {
	ctx, cancel := context.WithTimeout(s.server.base, s.server.config.CommitPatience)
	defer cancel()
	var id mail.QueueID
	var err error
	t.turnstile.commit(t, func() { id, err = s.server.queue.Submit(ctx, e, body) })
	if err == nil {
		s.server.stats.Accepted.Add(1)
		s.log.Info("accepted", "queue_id", id.String(), "from", e.From.String(),
			"recipients", len(e.Recipients), "size", int64(body.Size()))
		s.conn.OnRead(func() {
			s.server.stats.Settled.Add(1)
			s.server.queue.Settle(id)
		})
		return replyQueued(id)
	}
	r, certain := replySubmit(err)
	if s.server.config.Controls.Has(controls.UnknownRefused) && !certain {
		r, certain = replyTryAgain(), true
	}
	if !certain {
		s.unknown(err)
		return replyAborted()
	}
	s.server.stats.NotAccepted.Add(1)
	s.log.Warn("message not accepted", "from", e.From.String(), "reply", r.String(), "err", err)
	return r
}

// unknown closes without a reply.
func (s *session) unknown(cause error) {
	s.server.stats.AcceptUnknown.Add(1)
	s.conn.CloseSilently()
	s.log.Warn("outcome unknown, closed without a reply", "err", cause)
}

// Reset ends the transaction.
func (s *session) Reset() { s.tx = nil }

// Logout is the end of the session.
func (s *session) Logout() error {
	s.tx = nil
	return nil
}

// contain answers a panic in a command.
func (s *session) contain(err *error) {
	if r := recover(); r != nil {
		*err = s.panicked(r)
	}
}

func (s *session) panicked(r any) error {
	s.server.stats.Panics.Add(1)
	s.log.Error("session panicked", "panic", r, "stack", string(debug.Stack()))
	return toSMTP(replyInternal())
}
