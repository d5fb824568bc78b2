package deliverytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"testing"
	"time"
)

// An Authority signs certificates of primaries.
type Authority struct {
	Cert *x509.Certificate
	key  *ecdsa.PrivateKey
	now  time.Time
	// above are the certificates that lead from it to a root, itself included.
	above []*x509.Certificate
}

// A Certificate is what a primary's certificate is to be.
type Certificate struct {
	Names    []string
	Addrs    []net.IP
	From, To time.Time // a year around now where zero
	SelfMade bool      // signed by itself
}

// NewAuthority makes one that signs itself, for tests that take place about now.
func NewAuthority(t testing.TB, name string, now time.Time) *Authority {
	t.Helper()
	key := newKey(t)
	c := authorityCertificate(name, now)
	cert := sign(t, c, c, key, key)
	return &Authority{Cert: cert, key: key, now: now, above: []*x509.Certificate{cert}}
}

// Below makes an authority that this one signs.
func (a *Authority) Below(t testing.TB, name string) *Authority {
	t.Helper()
	key := newKey(t)
	cert := sign(t, authorityCertificate(name, a.now), a.Cert, key, a.key)
	return &Authority{Cert: cert, key: key, now: a.now, above: append([]*x509.Certificate{cert}, a.above...)}
}

// Issue makes a server's certificate, with the chain that the server sends.
func (a *Authority) Issue(t testing.TB, of Certificate) tls.Certificate {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "server"}, DNSNames: of.Names, IPAddresses: of.Addrs,
		NotBefore: of.From, NotAfter: of.To, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if of.From.IsZero() {
		c.NotBefore, c.NotAfter = a.now.AddDate(0, -6, 0), a.now.AddDate(0, 6, 0)
	}
	if of.SelfMade {
		leaf := sign(t, c, c, key, key)
		return tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	}
	leaf := sign(t, c, a.Cert, key, a.key)
	out := tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	for _, c := range a.above {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return out
}

// PEM returns the authority's certificate.
func (a *Authority) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Cert.Raw}))
}

// Pool returns it as the only one to trust.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Cert)
	return pool
}

func authorityCertificate(name string, now time.Time) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: now.AddDate(-5, 0, 0), NotAfter: now.AddDate(9, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t testing.TB, c, parent *x509.Certificate, key, parentKey *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), parentKey)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
