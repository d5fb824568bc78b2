package smtpd_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/smtpd"
)

// clientCertificate returns a self-signed certificate that ended long ago, and the hash
// of its key.
func clientCertificate(t testing.TB) (tls.Certificate, [32]byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	read, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: read}, sha256.Sum256(read.RawSubjectPublicKeyInfo)
}

// startTLSAs changes to TLS, and shows c if the server asks for a certificate. It
// returns whether it was asked.
func (c *client) startTLSAs(version uint16, show *tls.Certificate) (asked bool) {
	c.t.Helper()
	c.do("STARTTLS", "220 2.0.0")
	t := tls.Client(c.conn, &tls.Config{
		InsecureSkipVerify: true, MaxVersion: version,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			asked = true
			if show == nil {
				return new(tls.Certificate), nil
			}
			return show, nil
		},
	})
	_ = t.Handshake() // with TLS 1.3 a refusal is only heard later
	c.conn, c.r = t, bufio.NewReader(t)
	return asked
}

// TestCertificatesOfCallers: a client is asked for a certificate only where somebody is
// known by one, and takes no harm from having none, or one that nothing is known of.
// What counts of it is the key.
func TestCertificatesOfCallers(t *testing.T) {
	mine, key := clientCertificate(t)
	unreadable := tls.Certificate{Certificate: [][]byte{[]byte("no certificate")}, PrivateKey: mine.PrivateKey}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		q := newFakeQueue()
		s, addr := start(t, q, withTLS(t))
		call := func(show *tls.Certificate) (c *client, asked bool) {
			c = dial(t, addr)
			c.hello()
			return c, c.startTLSAs(version, show)
		}
		take := func(c *client) {
			t.Helper()
			c.do("EHLO client.example", "250 ")
			c.do("MAIL FROM:<a@sender.example>", "250 2.1.0")
			c.do("RCPT TO:<b@example.test>", "250 2.1.5")
			c.do("DATA", "354 ")
			c.do("text\r\n.", "250 2.0.0")
			c.do("QUIT", "221 ")
		}
		c, asked := call(&mine)
		if asked {
			t.Error("asked for a certificate that nobody knows")
		}
		take(c)
		q.asks.Store(true)
		for name, show := range map[string]*tls.Certificate{"none": nil, "unknown, ended": &mine} {
			if c, asked = call(show); !asked {
				t.Errorf("%s: not asked", name)
			}
			take(c)
		}
		c, _ = call(&mine)
		c.do("EHLO client.example", "250 ")
		c.do("ETRN example.test", "253 2.0.0")
		c.do("QUIT", "221 ")
		q.mu.Lock()
		if !slices.Equal(q.shown, [][32]byte{key}) {
			t.Errorf("called with %x, want %x", q.shown, key)
		}
		q.mu.Unlock()
		// One that cannot be read costs its sender one connection; then it is not
		// asked again.
		c, asked = call(&unreadable)
		if !asked {
			t.Error("not asked")
		}
		got := c.line()
		waitGone(t, s) // The client hears of it before the server has noted it.
		if s.GateStats().HandshakeFails.Load() != 1 {
			t.Errorf("%q, and %d handshakes failed", got, s.GateStats().HandshakeFails.Load())
		}
		c, asked = call(&unreadable)
		if asked {
			t.Error("asked again for a certificate that cannot be read")
		}
		take(c)
		if n := len(q.messages()); n != 4 {
			t.Errorf("%d messages, want 4", n)
		}
	}
}

// TestServerWithoutTLS: nothing is asked where there is no TLS.
func TestServerWithoutTLS(t *testing.T) {
	q := newFakeQueue()
	q.asks.Store(true)
	_, addr := start(t, q, func(c *smtpd.Config) { c.TLS = nil })
	c := dial(t, addr)
	c.hello()
	c.do("STARTTLS", "502 ")
	c.do("ETRN example.test", "253 ")
}
