package smtpclient

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Stage is a step of the conversation at which a peer can refuse, hang or
// drop the connection.
type Stage uint8

// The stages, in their order.
const (
	StageConnect Stage = iota + 1
	StageBanner
	StageHello
	StageStartTLS
	StageHandshake
	StageMail
	StageRecipient
	StageData
	StageBody
	StageDot
	StageQuit
	StageXClient
)

var stageNames = [...]string{
	StageConnect: "connect", StageBanner: "banner", StageHello: "EHLO", StageStartTLS: "STARTTLS",
	StageHandshake: "TLS handshake", StageMail: "MAIL", StageRecipient: "RCPT", StageData: "DATA",
	StageBody: "body", StageDot: "final dot", StageQuit: "QUIT", StageXClient: "XCLIENT",
}

// String returns the stage as people call it.
func (s Stage) String() string {
	if int(s) < len(stageNames) && stageNames[s] != "" {
		return stageNames[s]
	}
	return fmt.Sprintf("stage %d", uint8(s))
}

var (
	// ErrNoReply: the final dot may have reached the peer and no reply to it was
	// read. The message is in doubt (RFC 1047).
	ErrNoReply = errors.New("no reply to the final dot")
	// ErrTLS: TLS was begun and failed. The connection is gone; an opportunistic
	// caller dials again and does without.
	ErrTLS = errors.New("TLS failed")
	// ErrSMTPUTF8: the transaction needs SMTPUTF8 and the peer does not offer
	// it (RFC 6531 section 3.2). Nothing was sent; the connection is usable.
	ErrSMTPUTF8 = errors.New("SMTPUTF8 is needed and not offered")
	// ErrUnsafe: a path or parameter would not be one argument of one command
	// line. Nothing was sent; the connection is usable.
	ErrUnsafe = errors.New("not safe on a command line")
	// ErrSource: the content could not be read to its end. The connection is
	// closed and no dot was sent.
	ErrSource = errors.New("content not readable")
	// ErrStray: the content has a CR without LF or an LF without CR, which one
	// peer takes for a line end and another does not. The connection is closed
	// and no dot was sent.
	ErrStray = errors.New("stray CR or LF in the content")
	// ErrReply: the peer sent what is no reply, or more than a reply may have.
	ErrReply = errors.New("malformed reply")
	// ErrClosed: the connection was used after it had failed or was closed.
	ErrClosed = errors.New("connection is closed")
)

// A StageError is a conversation that ended early. After it the connection is
// closed.
type StageError struct {
	Stage Stage
	Reply mail.Reply // what the peer said, zero where it said nothing
	Err   error      // what went wrong, nil where the reply says it
}

func (e *StageError) Error() string {
	switch {
	case e.Reply.Code != 0 && e.Err != nil:
		return fmt.Sprintf("%s: %s: %v", e.Stage, e.Reply, e.Err)
	case e.Reply.Code != 0:
		return fmt.Sprintf("%s: %s", e.Stage, e.Reply)
	}
	return fmt.Sprintf("%s: %v", e.Stage, e.Err)
}

func (e *StageError) Unwrap() error { return e.Err }

// left reports that the peer ended the connection, in whatever way: without a word or
// by 421, and neither by what is no answer nor by silence.
func (e *StageError) left() bool {
	var silent net.Error
	switch {
	case e.Reply.Code != 0 && e.Reply.Code != 421, errors.Is(e.Err, ErrReply):
		return false
	case errors.Is(e.Err, net.ErrClosed), errors.Is(e.Err, ErrClosed):
		return false // It was we who did.
	}
	return !errors.As(e.Err, &silent) || !silent.Timeout()
}

// Timeouts are the longest waits of each stage. A zero field is the default,
// which is RFC 5321 section 4.5.3.2's where it names one.
type Timeouts struct {
	Banner    time.Duration
	Hello     time.Duration
	StartTLS  time.Duration
	Handshake time.Duration
	Mail      time.Duration
	Recipient time.Duration
	Data      time.Duration
	Block     time.Duration // one write, while the content goes out
	Dot       time.Duration
	Pipelined time.Duration // a reply to a command that was sent behind a dot
	Quit      time.Duration
}

// The default timeouts.
const (
	BannerTimeout    = 5 * time.Minute // section 4.5.3.2.1
	HelloTimeout     = 5 * time.Minute
	StartTLSTimeout  = 2 * time.Minute
	HandshakeTimeout = time.Minute
	MailTimeout      = 5 * time.Minute  // section 4.5.3.2.2
	RecipientTimeout = 5 * time.Minute  // section 4.5.3.2.3
	DataTimeout      = 2 * time.Minute  // section 4.5.3.2.4
	BlockTimeout     = 3 * time.Minute  // section 4.5.3.2.5
	DotTimeout       = 10 * time.Minute // section 4.5.3.2.6
	// PipelinedTimeout is shorter than the RFC's: a peer that loses what stands
	// behind a dot is given up, and the message tried again without pipelining,
	// with all the time that it may take.
	PipelinedTimeout = time.Minute
	// QuitTimeout is short: everything is decided before QUIT.
	QuitTimeout = 10 * time.Second
)

func (t Timeouts) withDefaults() Timeouts {
	for _, f := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&t.Banner, BannerTimeout}, {&t.Hello, HelloTimeout}, {&t.StartTLS, StartTLSTimeout},
		{&t.Handshake, HandshakeTimeout}, {&t.Mail, MailTimeout}, {&t.Recipient, RecipientTimeout},
		{&t.Data, DataTimeout}, {&t.Block, BlockTimeout}, {&t.Dot, DotTimeout}, {&t.Pipelined, PipelinedTimeout}, {&t.Quit, QuitTimeout},
	} {
		if *f.field <= 0 {
			*f.field = f.value
		}
	}
	return t
}
