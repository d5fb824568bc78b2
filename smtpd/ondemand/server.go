package ondemand

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Bounds of the dialogue, which nobody needs to tune.
const (
	// connectionsMax is how many callers there may be at a time, connectionsPerClient
	// how many from one IPv4 address or IPv6 /64. Few are expected; loopback is not
	// counted per client.
	connectionsMax       = 32
	connectionsPerClient = 4
	// lineMax is the longest command, or line of AUTH (RFC 4954 section 4).
	lineMax = 12 << 10
	// commandsMax and errorsMax are how many commands, and 5yz replies, end a dialogue.
	commandsMax = 50
	errorsMax   = 10
	// wrongMax is how many failed authentications end it.
	wrongMax = 3
	// loginsMax is how many passwords are tried at a time: each takes a processor's time.
	loginsMax = 2
	// domainsMax is how many domains one ATRN may name.
	domainsMax = 100

	commandTimeout   = 5 * time.Minute // RFC 5321 section 4.5.3.2.7
	handshakeTimeout = 30 * time.Second
	writeTimeout     = time.Minute
	loginTimeout     = 30 * time.Second
	// callTimeout is for Mail.Call: callers wait for ten minutes (RFC 2645 section
	// 5.2.1).
	callTimeout = time.Minute
	lingerTime  = time.Second
)

// Config is what a Server needs. All but Now and Logger is required.
type Config struct {
	Hostname string
	Mail     Mail
	// TLS has the certificate. Clients are asked for theirs, and need have none.
	TLS    *tls.Config
	Now    func() time.Time
	Logger *slog.Logger
}

// Stats counts what a Server did since it was made.
type Stats struct {
	Connections atomic.Uint64 // taken
	Refused     atomic.Uint64 // of these, by a limit, or since this node was not ready
	AuthFailed  atomic.Uint64 // passwords, names and keys that were wrong
	AuthBarred  atomic.Uint64 // authentications that were not looked at, after too many of these
	Calls       atomic.Uint64 // connections that were turned
}

// A Server serves callers.
type Server struct {
	c        Config
	tls      *tls.Config
	log      *slog.Logger
	stats    Stats
	failures failures
	logins   chan struct{}

	// base ends with Shutdown: nothing of the dialogue goes on after it.
	base context.Context
	cut  context.CancelFunc

	mu        sync.Mutex
	draining  bool
	listeners map[net.Listener]bool
	sessions  map[*session]bool
	perClient map[netip.Prefix]int
	called    map[mail.Domain]bool // those whose mail goes over a turned connection
}

// New returns a Server that does not listen yet.
func New(c Config) (*Server, error) {
	if c.Hostname == "" || c.Mail == nil || c.TLS == nil {
		return nil, errors.New("ondemand: Hostname, Mail and TLS are needed")
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{
		c: c, tls: c.TLS.Clone(), log: c.Logger, failures: newFailures(c.Now), logins: make(chan struct{}, loginsMax),
		listeners: make(map[net.Listener]bool), sessions: make(map[*session]bool),
		perClient: make(map[netip.Prefix]int), called: make(map[mail.Domain]bool),
	}
	s.tls.ClientAuth = tls.RequestClientCert
	s.base, s.cut = context.WithCancel(context.Background())
	return s, nil
}

// Stats returns the counters; they may be read at any time.
func (s *Server) Stats() *Stats { return &s.stats }

// Serve takes connections from l until Shutdown, and returns when all that came of them
// is over: nil after a Shutdown. It closes l.
func (s *Server) Serve(l net.Listener) error {
	defer func() { _ = l.Close() }()
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		return nil
	}
	s.listeners[l] = true
	s.mu.Unlock()
	var handlers sync.WaitGroup
	defer handlers.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			delete(s.listeners, l)
			if s.draining {
				return nil
			}
			return fmt.Errorf("on-demand listener %s: %w", l.Addr(), err)
		}
		handlers.Go(func() { s.handle(conn) })
	}
}

// Shutdown stops taking connections and ends all dialogues. Connections that were turned
// are their Mail's to end. It does not wait for either.
func (s *Server) Shutdown(context.Context) error {
	s.mu.Lock()
	s.draining = true
	for l := range s.listeners {
		_ = l.Close()
	}
	for one := range s.sessions {
		if !one.turned {
			one.wake()
		}
	}
	s.mu.Unlock()
	s.cut()
	return nil
}

// handle serves one connection.
func (s *Server) handle(conn net.Conn) {
	one := newSession(s, conn)
	defer func() {
		if r := recover(); r != nil { // the end of one connection, and not of the process
			s.log.Error("on-demand session panicked", "client", one.client, "panic", r, "stack", string(debug.Stack()))
		}
		s.remove(one)
		if !one.turned {
			_ = conn.Close()
		}
	}()
	s.stats.Connections.Add(1)
	refusal, ok := s.add(one)
	if !ok {
		s.stats.Refused.Add(1)
		one.leave(refusal)
		return
	}
	one.run()
}

// add enters a session, or says why it cannot be.
func (s *Server) add(one *session) (refusal mail.Reply, ok bool) {
	if err := s.c.Mail.Ready(); err != nil {
		return replyNotReady, false
	}
	client := clientOf(one.client)
	s.mu.Lock()
	defer s.mu.Unlock()
	limited := client.IsValid() && !one.client.IsLoopback()
	switch {
	case s.draining:
		return replyDraining, false
	case len(s.sessions) >= connectionsMax, limited && s.perClient[client] >= connectionsPerClient:
		return replyCrowded, false
	}
	s.sessions[one] = true
	if limited {
		one.counted = client
		s.perClient[client]++
	}
	return mail.Reply{}, true
}

func (s *Server) remove(one *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.sessions[one] {
		return
	}
	delete(s.sessions, one)
	if one.counted.IsValid() {
		if s.perClient[one.counted]--; s.perClient[one.counted] == 0 {
			delete(s.perClient, one.counted)
		}
	}
}

// claim has the domains called for by one session alone. False: one of them is already.
func (s *Server) claim(domains []mail.Domain) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range domains {
		if s.called[d] {
			return false
		}
	}
	for _, d := range domains {
		s.called[d] = true
	}
	return true
}

func (s *Server) release(domains []mail.Domain) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range domains {
		delete(s.called, d)
	}
}

// turn notes that a session's connection is its Mail's from now on. False: the server
// ends.
func (s *Server) turn(one *session) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	one.turned = !s.draining
	return one.turned
}

func (s *Server) isDraining() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.draining
}

// login tries a password, a few at a time.
func (s *Server) login(user, password string) ([]mail.Domain, error) {
	ctx, cancel := context.WithTimeout(s.base, loginTimeout)
	defer cancel()
	select {
	case s.logins <- struct{}{}:
		defer func() { <-s.logins }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return s.c.Mail.Login(ctx, user, password)
}
