package smtpd_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd"
)

const hostname = "mx1.holdfast.test"

// A stored message is what the fake queue was given.
type stored struct {
	id       mail.QueueID
	envelope mail.Envelope
	body     string
}

// fakeQueue is a Queue in memory, with relay domains example.test and
// example.org.
type fakeQueue struct {
	mu      sync.Mutex
	ready   error
	submit  func(ctx context.Context, id mail.QueueID) error // nil: accept at once
	stored  []stored
	settled []mail.QueueID
	panics  bool // in RelayDomain
	minted  uint64
	changed chan struct{} // closed and replaced at each change
	discard bool          // for benchmarks: keep nothing
	asks    atomic.Bool   // knows callers by their keys
	shown   [][32]byte    // keys of who called
}

func newFakeQueue() *fakeQueue { return &fakeQueue{changed: make(chan struct{})} }

func (q *fakeQueue) notify() {
	close(q.changed)
	q.changed = make(chan struct{})
}

func (q *fakeQueue) Ready() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.ready
}

func (q *fakeQueue) setReady(err error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ready = err
}

func (q *fakeQueue) RelayDomain(_ context.Context, d mail.Domain) (bool, error) {
	if q.panics {
		panic("told to")
	}
	known := d == "example.test" || d == "example.org"
	if !known {
		return false, q.Ready() // as a node that catches up: not certain
	}
	return known, nil
}

func (q *fakeQueue) Turn(_ context.Context, who smtpd.Caller, d mail.Domain) (smtpd.Turned, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if who.HasKey {
		q.shown = append(q.shown, who.Key)
	}
	switch {
	case who.Address != netip.MustParseAddr("127.0.0.1"):
	case d == "example.test":
		return smtpd.Turned{Waiting: 12}, nil
	case d == "empty.test":
		return smtpd.Turned{}, nil
	case d == "again.test":
		return smtpd.Turned{Waiting: 12, Underway: true}, nil
	case d == "behind.test":
		return smtpd.Turned{Uncounted: true}, nil
	case d == "slow.test":
		return smtpd.Turned{}, errors.New("no leader")
	}
	return smtpd.Turned{}, fmt.Errorf("%w: %s asks for %s", smtpd.ErrTurnRefused, who.Address, d)
}

func (q *fakeQueue) KnowsKeys() bool { return q.asks.Load() }

func (q *fakeQueue) PostmasterDomain() (mail.Domain, bool) { return "example.org", true }

func (q *fakeQueue) Submit(ctx context.Context, e mail.Envelope, b *mail.Body) (mail.QueueID, error) {
	q.mu.Lock()
	q.minted++
	id := mail.MintQueueID(q.minted, [10]byte{})
	submit := q.submit
	q.mu.Unlock()
	if submit != nil {
		if err := submit(ctx, id); err != nil {
			return mail.QueueID{}, err
		}
	}
	if q.discard {
		return id, nil
	}
	octets, err := io.ReadAll(b.Reader())
	if err != nil {
		return mail.QueueID{}, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.stored = append(q.stored, stored{id, e, string(octets)})
	q.notify()
	return id, nil
}

func (q *fakeQueue) Settle(id mail.QueueID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.settled = append(q.settled, id)
	q.notify()
}

func (q *fakeQueue) messages() []stored {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.stored)
}

func (q *fakeQueue) settledIDs() []mail.QueueID {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.settled)
}

// start runs a server on a loopback port. It is shut down with the test.
func start(t testing.TB, q smtpd.Queue, change func(*smtpd.Config)) (*smtpd.Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return startOn(t, l, q, change), l.Addr().String()
}

func startOn(t testing.TB, l net.Listener, q smtpd.Queue, change func(*smtpd.Config)) *smtpd.Server {
	t.Helper()
	c := smtpd.Config{Hostname: hostname, Queue: q, Now: func() time.Time { return time.Unix(1_700_000_000, 0) }}
	if change != nil {
		change(&c)
	}
	s, err := smtpd.New(c)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// A client speaks SMTP by hand.
type client struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

// clientPatience ends a test that would hang. Nothing is measured by it.
const clientPatience = 30 * time.Second

func dial(t testing.TB, addr string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	return newClient(t, conn)
}

func newClient(t testing.TB, conn net.Conn) *client {
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(clientPatience))
	return &client{t, conn, bufio.NewReader(conn)}
}

// send writes octets as they are, in one write.
func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, s); err != nil {
		c.t.Fatalf("send %.60q: %v", s, err)
	}
}

// line reads one line of a reply, without its end; an error as text.
func (c *client) line() string {
	s, err := c.r.ReadString('\n')
	if err != nil && s == "" {
		if errors.Is(err, io.EOF) {
			return "EOF"
		}
		return "error: " + err.Error()
	}
	return strings.TrimSuffix(s, "\r\n")
}

// reply reads a whole reply and returns its last line.
func (c *client) reply() string {
	for {
		s := c.line()
		if len(s) < 4 || s[3] != '-' {
			return s
		}
	}
}

// expect reads a reply and compares the beginning of its last line.
func (c *client) expect(prefix string) string {
	c.t.Helper()
	s := c.reply()
	if !strings.HasPrefix(s, prefix) {
		c.t.Fatalf("got reply %q, want %q", s, prefix)
	}
	return s
}

// do sends a command and expects a reply.
func (c *client) do(command, prefix string) string {
	c.t.Helper()
	c.send(command + "\r\n")
	return c.expect(prefix)
}

// hello begins the session.
func (c *client) hello() {
	c.t.Helper()
	c.expect("220 " + hostname)
	c.do("EHLO client.example", "250 ")
}

// toData does everything up to the 354.
func (c *client) toData() {
	c.t.Helper()
	c.hello()
	c.do("MAIL FROM:<a@sender.example>", "250 2.1.0")
	c.do("RCPT TO:<b@example.test>", "250 2.1.5")
	c.do("DATA", "354 ")
}

// expectSilentEnd reads to the end of the connection, and fails on any octet.
func (c *client) expectSilentEnd() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	var ne net.Error
	if errors.As(err, &ne) && ne.Timeout() {
		c.t.Fatal("connection was not closed")
	}
	if len(rest) > 0 {
		c.t.Fatalf("got %q before the end, want nothing", rest)
	}
}

// startTLS changes to TLS.
func (c *client) startTLS() {
	c.t.Helper()
	c.do("STARTTLS", "220 2.0.0")
	t := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true})
	if err := t.Handshake(); err != nil {
		c.t.Fatalf("handshake: %v", err)
	}
	c.conn, c.r = t, bufio.NewReader(t)
}

// waitGone waits until the server has no connection left.
func waitGone(t testing.TB, s *smtpd.Server) {
	t.Helper()
	waitFor(t, "connections to end", func() bool { return s.GateStats().Connections.Load() == 0 })
}

// waitFor polls a condition that another goroutine will make true.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(clientPatience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// only returns the one message that was stored.
func (q *fakeQueue) only(t testing.TB) stored {
	t.Helper()
	m := q.messages()
	if len(m) != 1 {
		t.Fatalf("%d messages stored, want 1: %.300q", len(m), fmt.Sprint(m))
	}
	return m[0]
}

// certificate returns a self-signed server configuration.
func certificate(t testing.TB) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{hostname},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, MinVersion: tls.VersionTLS12}
}
