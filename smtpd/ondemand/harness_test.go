package ondemand

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"io"
	"math/big"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const hostname = "mx1.holdfast.test"

// fakeMail is a Mail in memory: joe calls for example.test, example.org and empty.test.
type fakeMail struct {
	mu      sync.Mutex
	ready   error
	broken  error // of Login and Call
	key     [32]byte
	logins  int
	turned  [][]mail.Domain
	said    string        // what the caller said first, as a server
	deliver chan struct{} // not nil: Deliver waits for it
}

func (m *fakeMail) Ready() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ready
}

func (m *fakeMail) Login(_ context.Context, user, password string) ([]mail.Domain, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.logins++
	if m.broken != nil {
		return nil, m.broken
	}
	if user == "joe" && password == "correct horse" {
		return []mail.Domain{"empty.test", "example.org", "example.test"}, nil
	}
	return nil, nil
}

func (m *fakeMail) ByKey(key [32]byte) []mail.Domain {
	if key == m.key {
		return []mail.Domain{"example.test"}
	}
	return nil
}

func (m *fakeMail) Call(_ context.Context, domains []mail.Domain) ([]mail.Domain, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(domains), func(d mail.Domain) bool { return d == "empty.test" }), m.broken
}

func (m *fakeMail) Deliver(c Turned, domains []mail.Domain) {
	defer c.Conn.Close()
	m.mu.Lock()
	m.turned = append(m.turned, domains)
	wait := m.deliver
	m.mu.Unlock()
	if wait != nil {
		<-wait
	}
	line, _ := bufio.NewReader(c.TLS).ReadString('\n')
	m.mu.Lock()
	m.said = line
	m.mu.Unlock()
	_, _ = io.WriteString(c.TLS, "QUIT\r\n")
}

func (m *fakeMail) calls() [][]mail.Domain {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.turned)
}

// certificate returns one that signs itself, and the hash of its key.
func certificate(t testing.TB) (tls.Certificate, [32]byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	read, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, sha256.Sum256(read.RawSubjectPublicKeyInfo)
}

// start runs a server on a loopback port.
func start(t testing.TB, m *fakeMail, change func(*Config)) (*Server, string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	pair, _ := certificate(t)
	c := Config{Hostname: hostname, Mail: m, TLS: &tls.Config{Certificates: []tls.Certificate{pair}}}
	if change != nil {
		change(&c)
	}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		_ = s.Shutdown(context.Background())
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s, l.Addr().String()
}

// patience ends a test that would hang. Nothing is measured by it.
const patience = 30 * time.Second

// A caller speaks by hand.
type caller struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func dial(t testing.TB, addr string) *caller {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &caller{t, conn, bufio.NewReader(conn)}
}

func (c *caller) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, s); err != nil {
		c.t.Fatalf("send %.60q: %v", s, err)
	}
}

// reply reads a whole reply and returns its last line, or EOF.
func (c *caller) reply() string {
	for {
		s, err := c.r.ReadString('\n')
		if err != nil && s == "" {
			if errors.Is(err, io.EOF) {
				return "EOF"
			}
			return "error: " + err.Error()
		}
		if s = strings.TrimSuffix(s, "\r\n"); len(s) < 4 || s[3] != '-' {
			return s
		}
	}
}

func (c *caller) expect(prefix string) string {
	c.t.Helper()
	s := c.reply()
	if !strings.HasPrefix(s, prefix) {
		c.t.Fatalf("got %q, want %q", s, prefix)
	}
	return s
}

func (c *caller) do(command, prefix string) string {
	c.t.Helper()
	c.send(command + "\r\n")
	return c.expect(prefix)
}

// secure begins the session and TLS, and says EHLO again.
func (c *caller) secure(show ...tls.Certificate) string {
	c.t.Helper()
	c.expect("220 " + hostname)
	c.do("EHLO primary.test", "250 STARTTLS")
	c.do("STARTTLS", "220 ")
	t := tls.Client(c.conn, &tls.Config{InsecureSkipVerify: true, Certificates: show})
	if err := t.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.conn, c.r = t, bufio.NewReader(t)
	return c.do("EHLO primary.test", "250 ")
}

// plain is a response of the mechanism PLAIN.
func plain(identity, user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(identity + "\x00" + user + "\x00" + password))
}

// waitFor polls a condition that another goroutine will make true.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
