package sink

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

const (
	sessionsMax = 1000             // connections at a time; more get a 421
	idleMax     = 5 * time.Minute  // RFC 5321 section 4.5.3.2.7
	contentTime = 10 * time.Minute // for the content of one message
	lineMax     = 4 << 10          // octets in a command line
	inspectMax  = 1 << 20          // octets of a message that Inspect gets to see
)

// sizeMaxDefault is the SIZE offered when Options.SizeMax is 0.
const sizeMaxDefault = 100 << 20

// Options are what a Server is made of.
type Options struct {
	// Hostname stands in the banner.
	Hostname string
	// Arrival is called for each recipient of each message taken, before
	// the 250. When it fails the message is refused with a 451.
	Arrival func(ledger.Arrival) error
	// Unread, when not nil, is told of each recipient that Stats.Unread counts.
	Unread func(ledger.Unread)
	// Message, when not nil, is told of each message of at most 1 MiB that is taken,
	// before the 250. When it fails the message is refused with a 451.
	Message func(m Message) error
	// Refuse, when not nil, says which recipients there are not: at Rcpt, and at Dot
	// for whom the whole message is refused. Refused is told of each recipient that
	// is refused so, or by a fault, before he hears; when it fails he is put off.
	Refuse  func(stage Stage, recipient string) bool
	Refused func(ledger.Refusal) error
	// Faults is the plan of misbehaviour; nil for none.
	Faults *Faults
	// TLS, when not nil, makes the server offer STARTTLS.
	TLS *tls.Config
	// SizeMax is the SIZE offered, in octets.
	SizeMax int64
	// Pace is waited before each reply to a final dot, to make a primary slow.
	Pace time.Duration
	// Inspect, when not nil, sees each message of at most 1 MiB before it is
	// taken. An error refuses it with a 550 and is counted as a violation.
	Inspect func(reversePath string, recipients []string, content []byte) error
	Logger  *slog.Logger
}

// Stats counts what a server did.
type Stats struct {
	Connections int64 `json:"connections"`
	// ConnectionsMost is the greatest number of them at a time.
	ConnectionsMost int64 `json:"connections_most"`
	Messages        int64 `json:"messages"`
	Recipients      int64 `json:"recipients"`
	Octets          int64 `json:"octets"`
	// Unread counts the recipients of messages that were taken on connections
	// on which nothing more came after the 250 was due: nobody can know
	// whether it was read. Each may be delivered once more (RFC 1047).
	Unread     int64 `json:"unread"`
	Violations int64 `json:"violations"`
	TLS        int64 `json:"tls"`
}

// A Server is a primary.
type Server struct {
	o         Options
	log       *slog.Logger
	closing   chan struct{}
	pace      atomic.Int64
	paced     atomic.Int64
	messages  atomic.Int64
	rcpts     atomic.Int64
	octets    atomic.Int64
	unread    atomic.Int64
	conns     atomic.Int64
	tls       atomic.Int64
	violation atomic.Int64

	mu        sync.Mutex
	closed    bool
	listeners map[net.Listener]struct{}
	open      map[net.Conn]struct{}
	openMost  int // of those that clients had open at a time
	sessions  sync.WaitGroup
	started   sync.WaitGroup // what Start began
}

// New returns a server that serves nothing yet.
func New(o Options) *Server {
	if o.Faults == nil {
		o.Faults = NewFaults(0)
	}
	if o.SizeMax == 0 {
		o.SizeMax = sizeMaxDefault
	}
	if o.Hostname == "" {
		o.Hostname = "primary.invalid"
	}
	log := o.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		o: o, log: log, closing: make(chan struct{}),
		listeners: make(map[net.Listener]struct{}), open: make(map[net.Conn]struct{}),
	}
	s.pace.Store(int64(o.Pace))
	return s
}

// Start returns a server that serves l. With Close that ends, too, however l behaved.
func Start(l net.Listener, o Options) *Server {
	s := New(o)
	s.started.Go(func() { _ = s.Serve(l) }) // until Close, or l fails
	return s
}

// ErrClosed is what Serve returns after Close.
var ErrClosed = errors.New("the primary is closed")

// Serve takes connections of l until Close, or until l fails. It closes l.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		l.Close()
		return ErrClosed
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()
	for {
		conn, err := l.Accept()
		if err != nil {
			select {
			case <-s.closing:
				return ErrClosed
			default:
			}
			return fmt.Errorf("accept: %w", err)
		}
		if !s.begin(conn) {
			conn.Close()
			continue
		}
		go func() {
			defer s.end(conn)
			s.conns.Add(1)
			newSession(s, conn).run()
		}()
	}
}

func (s *Server) begin(conn net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.open) >= sessionsMax {
		return false
	}
	s.open[conn] = struct{}{}
	if len(s.open) > s.openMost {
		n := 0
		for c := range s.open {
			if established(c) {
				n++
			}
		}
		s.openMost = max(s.openMost, n)
	}
	s.sessions.Add(1)
	return true
}

func (s *Server) end(conn net.Conn) {
	conn.Close()
	s.mu.Lock()
	delete(s.open, conn)
	s.mu.Unlock()
	s.sessions.Done()
}

// Close ends every listener and every connection, as a primary that dies, and
// returns when all sessions have ended, and what Start began.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
		for l := range s.listeners {
			l.Close()
		}
		for c := range s.open {
			c.Close()
		}
	}
	s.mu.Unlock()
	s.sessions.Wait()
	s.started.Wait()
}

// SetPace changes the time waited before the reply to a final dot.
func (s *Server) SetPace(d time.Duration) { s.pace.Store(int64(d)) }

// Paced counts the replies that were kept waiting so far.
func (s *Server) Paced() int64 { return s.paced.Load() }

// Stats returns the counts so far.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	most := s.openMost
	s.mu.Unlock()
	return Stats{
		Connections: s.conns.Load(), ConnectionsMost: int64(most), Messages: s.messages.Load(), Recipients: s.rcpts.Load(),
		Octets: s.octets.Load(), Unread: s.unread.Load(), Violations: s.violation.Load(), TLS: s.tls.Load(),
	}
}
