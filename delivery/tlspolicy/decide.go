package tlspolicy

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Hop is what is known of one next hop when it is about to be connected to.
type Hop struct {
	Domain mail.Domain // the relay domain
	Host   string      // the hop's name, or an address
	ByMX   bool        // Host came from MX records, and was not configured
	TLSA   TLSA        // for DANE
	STS    STS         // for MTASTS
	Now    time.Time   // to judge certificates by
	// Roots are the public authorities. Nil means the host's.
	Roots *x509.CertPool
}

// A Decision is how a hop may be connected to.
type Decision struct {
	Source Source
	// Config is for STARTTLS, and nothing goes to the hop without it: no STARTTLS
	// or a handshake that fails means that the mail waits. Nil leaves TLS
	// opportunistic.
	Config *tls.Config
	// Judge, where it is not nil, says what is wrong with a session that is used
	// all the same, or nil. It is how MTA-STS is tested before it is enforced.
	Judge func(tls.ConnectionState) *Failure
	// Trouble is what is wrong before the hop is connected to, where it may be
	// used all the same.
	Trouble *Failure

	host string
}

// Decide returns how the hop may be connected to. An error is a *Failure: not
// at all.
//
// TLS is opportunistic where the policy says so; under DANE, where the hop has
// no TLSA records that DNSSEC vouches for (RFC 7672 section 2.2); under MTASTS,
// where the domain has no policy, one of mode none, or one that is tested only.
// A domain of which it cannot be learnt whether it has an MTA-STS policy is
// delivered to under TLS with any certificate: RFC 8461 section 3.3 demands that
// its mail goes on as without a policy, and ours that it is not in the clear.
func (p Policy) Decide(h Hop) (Decision, error) {
	d := Decision{Source: FromNobody, host: h.Host}
	switch p.Mode {
	case Opportunistic:
	case Require:
		d.demand(h, nil)
	case Verify:
		authenticate, err := p.verify(h)
		if err != nil {
			return Decision{}, &Failure{ValidationFailure, d.Source, h.Host, err}
		}
		d.demand(h, authenticate)
	case DANE:
		return d.dane(h)
	case MTASTS:
		return d.sts(h)
	default: // A newer one.
		return Decision{}, &Failure{ValidationFailure, d.Source, h.Host, fmt.Errorf("TLS %s is not known here", p.Mode)}
	}
	return d, nil
}

// demand makes TLS mandatory, with a session that authenticate, if not nil,
// finds nothing wrong with. Versions before 1.2 do not count (RFC 8996).
func (d *Decision) demand(h Hop, authenticate func(tls.ConnectionState) error) {
	// The library's own verification knows one name, one set of authorities and
	// neither pins nor TLSA: VerifyConnection takes its place, and is called for
	// every session.
	d.Config = &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12, ServerName: serverName(h.Host)}
	if authenticate == nil {
		return
	}
	judge := d.judge(authenticate)
	d.Config.VerifyConnection = func(s tls.ConnectionState) error {
		if f := judge(s); f != nil {
			return f
		}
		return nil
	}
}

func (d *Decision) judge(authenticate func(tls.ConnectionState) error) func(tls.ConnectionState) *Failure {
	source, host := d.Source, d.host
	return func(s tls.ConnectionState) *Failure {
		if err := authenticate(s); err != nil {
			return &Failure{resultOf(err), source, host, err}
		}
		return nil
	}
}

// verify returns what Verify demands of a session.
func (p Policy) verify(h Hop) (func(tls.ConnectionState) error, error) {
	roots := h.Roots
	if p.CAs != "" {
		var err error
		if roots, err = p.authorities(); err != nil {
			return nil, err
		}
	}
	names := p.Names
	switch {
	case len(names) > 0:
	case h.ByMX:
		names = []string{string(h.Domain), "." + string(h.Domain)}
	default:
		names = []string{h.Host}
	}
	return func(s tls.ConnectionState) error {
		if len(s.PeerCertificates) == 0 {
			return errNoCertificate
		}
		found := PinOf(s.PeerCertificates[0])
		for _, pin := range p.Pins {
			if pin == found {
				return nil
			}
		}
		if !p.byName() {
			return fmt.Errorf("%w: its pin is %s", errNotPinned, found)
		}
		return authenticated(s, roots, names, h.Now)
	}, nil
}

var (
	errNoCertificate = errors.New("no certificate")
	errNotPinned     = errors.New("the certificate has another key than those that were pinned")
)

// authenticated is nil for a certificate that chains up to one of the roots
// (nil: the host's public ones) and is for one of the names.
func authenticated(s tls.ConnectionState, roots *x509.CertPool, names []string, now time.Time) error {
	if len(s.PeerCertificates) == 0 {
		return errNoCertificate
	}
	leaf := s.PeerCertificates[0]
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: now}); err != nil {
		return err
	}
	for _, name := range names {
		if isFor(leaf, name) {
			return nil
		}
	}
	if len(names) == 0 {
		return errors.New("no name to look for in the certificate")
	}
	return x509.HostnameError{Certificate: leaf, Host: names[0]}
}

// isFor reports whether a certificate is for a name, or with a dot in front for
// a name below it.
func isFor(c *x509.Certificate, name string) bool {
	if !strings.HasPrefix(name, ".") {
		return c.VerifyHostname(strings.TrimSuffix(name, ".")) == nil
	}
	for _, n := range c.DNSNames {
		if n = strings.ToLower(strings.TrimSuffix(n, ".")); len(n) > len(name) && strings.HasSuffix(n, name) {
			return true
		}
	}
	return false
}

// serverName is what the handshake asks for; an address cannot be asked for
// (RFC 6066 section 3).
func serverName(host string) string {
	bare := strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(bare); err == nil {
		return ""
	}
	return strings.TrimSuffix(host, ".")
}
