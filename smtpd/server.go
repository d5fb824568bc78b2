package smtpd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/emersion/go-smtp"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd/gate"
)

// Config is what a Server needs. Hostname and Queue are required; a zero in
// another field stands for its default.
type Config struct {
	Hostname string
	Queue    Queue
	// TraceMark is what stands in each Received field that this cluster writes. A
	// message with two of them goes in circles. "" looks for none.
	TraceMark string
	// TLS has the certificate. nil: STARTTLS is not offered.
	TLS *tls.Config

	MaxMessageSize mail.ByteSize // of a body; 50 MiB
	RecipientsMax  int           // per transaction; 1,000
	// CommitPatience is how long a Submit may take; 60 s. Senders wait for ten
	// minutes (RFC 5321 section 4.5.3.2.6).
	CommitPatience time.Duration
	// BytesInFlight bounds the bodies in memory; 128 MiB. A message waits for
	// room for at most MemoryPatience, 30 s, each time it has to grow.
	BytesInFlight  mail.ByteSize
	MemoryPatience time.Duration
	// Memory lends what bodies are kept in; nil is the garbage collector's. Submit
	// gives it back.
	Memory mail.Memory

	// Limits of connections and waits. Its ConnectionsPerClient (50) and
	// ConnectionsMax (2,000) are configuration; the rest is for tests.
	Limits         gate.Limits
	ExemptNetworks []netip.Prefix // not counted per client

	Now    func() time.Time // wall clock, for the trace field only
	Logger *slog.Logger
	// Controls breaks single rules, in builds with the tag controls alone.
	Controls controls.Set
}

// stopPatience bounds the wait for handlers whose connections were closed: a
// Submit that does not heed its context.
const stopPatience = 5 * time.Second

// A Server accepts mail.
type Server struct {
	config     Config
	hostDomain mail.Domain
	queue      Queue
	gate       *gate.Gate
	smtp       *smtp.Server
	inFlight   *inFlight
	turnstiles turnstiles
	stats      Stats
	log        *slog.Logger

	// base ends when the last connections are cut; Submits in progress end
	// with it.
	base     context.Context
	cut      context.CancelFunc
	stopping atomic.Bool
}

// New returns a Server that does not listen yet.
func New(c Config) (*Server, error) {
	setDefault(&c.MaxMessageSize, 50*mail.MiB)
	setDefault(&c.RecipientsMax, 1000)
	setDefault(&c.CommitPatience, 60*time.Second)
	setDefault(&c.BytesInFlight, 128*mail.MiB)
	setDefault(&c.MemoryPatience, 30*time.Second)
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Limits.DiscardMax == 0 {
		c.Limits.DiscardMax = c.MaxMessageSize
	}
	host, err := mail.ParseDomain(c.Hostname)
	if err != nil {
		return nil, fmt.Errorf("hostname: %w", err)
	}
	if c.Queue == nil {
		return nil, errors.New("smtpd: no queue")
	}
	if c.BytesInFlight < c.MaxMessageSize {
		return nil, fmt.Errorf("bytes in flight (%d) must not be less than the largest message (%d)", c.BytesInFlight, c.MaxMessageSize)
	}
	s := &Server{
		config:     c,
		hostDomain: host,
		queue:      c.Queue,
		inFlight:   newInFlight(c.BytesInFlight, c.MemoryPatience),
		turnstiles: newTurnstiles(time.Now),
		log:        c.Logger,
	}
	s.base, s.cut = context.WithCancel(context.Background())
	s.gate = gate.New(gate.Config{
		Hostname: c.Hostname,
		Extensions: []string{
			"PIPELINING",
			fmt.Sprintf("SIZE %d", c.MaxMessageSize),
			"8BITMIME",
			"SMTPUTF8",
			"DSN",
			"ETRN",
			"ENHANCEDSTATUSCODES",
		},
		Turn: s.turn,
		TLS:  c.TLS,

		AskCertificate: c.Queue.KnowsKeys,
		Refuse:         s.refuse,
		Limits:         c.Limits,
		Exempt:         c.ExemptNetworks,
		Logger:         c.Logger,
		Controls:       c.Controls,
	})
	s.smtp = smtp.NewServer(smtp.BackendFunc(s.newSession))
	s.smtp.Domain = c.Hostname
	s.smtp.ErrorLog = smtpLog{c.Logger}
	// The gate bounds lines, sizes and times. go-smtp's own limits are off: its
	// line limit looks at each octet.
	s.smtp.MaxLineLength = 0
	return s, nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Serve accepts connections from l until Shutdown, and then returns nil. It may
// be called for several listeners. It closes l.
func (s *Server) Serve(l net.Listener) error {
	guarded := s.gate.Listen(l)
	defer guarded.Close()
	err := s.smtp.Serve(guarded)
	if s.stopping.Load() {
		return nil
	}
	return fmt.Errorf("smtp listener %s: %w", l.Addr(), err)
}

// Shutdown stops accepting connections. Idle sessions are told 421 and closed;
// busy ones may finish their transaction until ctx ends, unless the queue is not
// ready: then they are told 421 as well. What is left then is
// closed without a word, its commits in progress are abandoned (their outcome
// is unknown), and the context's error is returned.
func (s *Server) Shutdown(ctx context.Context) error {
	s.stopping.Store(true)
	defer s.cut()
	if s.queue.Ready() == nil {
		s.gate.Drain()
	} else {
		s.gate.Dismiss()
	}
	err := s.gate.Wait(ctx)
	if err == nil {
		return nil
	}
	s.gate.Abort()
	s.cut()
	stopCtx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	if s.gate.Wait(stopCtx) != nil {
		return fmt.Errorf("smtp sessions still busy after they were cut: %w", err)
	}
	return err
}

// Stats returns the counters of messages.
func (s *Server) Stats() *Stats { return &s.stats }

// GateStats returns the counters of connections.
func (s *Server) GateStats() *gate.Stats { return s.gate.Stats() }

// refuse is the gate's question at the greeting. Where only room is missing it
// is for MAIL to say so, in the words that there are for it.
func (s *Server) refuse() *mail.Reply {
	err := s.queue.Ready()
	if err == nil || errors.Is(err, ErrDiskLow) {
		return nil
	}
	r := greetingNotReady(err)
	return &r
}

func (s *Server) newSession(c *smtp.Conn) (smtp.Session, error) {
	conn, ok := c.Conn().(*gate.Conn)
	if !ok {
		return nil, toSMTP(replyInternal())
	}
	return &session{server: s, conn: conn, log: s.log.With("client", conn.Client().String())}, nil
}

// smtpLog is where go-smtp reports panics and failing connections.
type smtpLog struct{ log *slog.Logger }

func (l smtpLog) Printf(format string, v ...any) {
	l.log.Error("go-smtp", "message", fmt.Sprintf(format, v...))
}
func (l smtpLog) Println(v ...any) { l.log.Error("go-smtp", "message", fmt.Sprintln(v...)) }
