package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
)

// now is when the tests take place.
var now = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)

type template = deliverytest.Certificate

func newAuthority(t *testing.T, name string) *deliverytest.Authority {
	return deliverytest.NewAuthority(t, name, now)
}

func pemOf(der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
}

// state is the session of a server with this certificate.
func state(t *testing.T, c tls.Certificate) tls.ConnectionState {
	t.Helper()
	s := tls.ConnectionState{Version: tls.VersionTLS13, HandshakeComplete: true}
	for _, der := range c.Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		s.PeerCertificates = append(s.PeerCertificates, cert)
	}
	return s
}

// handshake speaks TLS to a server with this configuration, over a pipe.
func handshake(client, server *tls.Config) error {
	near, far := deliverytest.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = tls.Server(far, server).Handshake()
		_ = far.Close()
	}()
	c := tls.Client(near, client)
	err := c.Handshake()
	_ = near.Close()
	<-done
	return err
}
