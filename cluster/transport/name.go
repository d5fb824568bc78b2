package transport

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"
)

// A ServerID names one life of a node as Raft knows it: <name>/<incarnation>.
// The incarnation is drawn when a data directory is made, so a node that comes
// back with an empty disk is another server.
type ServerID string

// Name returns the node's name, the part that its certificate proves.
func (id ServerID) Name() string {
	name, _, _ := strings.Cut(string(id), "/")
	return name
}

// Incarnation returns the part behind the name.
func (id ServerID) Incarnation() string {
	_, incarnation, _ := strings.Cut(string(id), "/")
	return incarnation
}

// nameBytesMax is the longest cluster or node name: that of a DNS label.
const nameBytesMax = 63

// incarnationBytesMax is the longest incarnation.
const incarnationBytesMax = 64

// ErrName: the name of a cluster or node is not of the form that CheckName
// wants, or a server id is not <name>/<incarnation>.
var ErrName = errors.New("malformed name")

// CheckName tells whether s can name a cluster or a node: 1 to 63 lower case
// letters, digits and hyphens, with no hyphen at either end. It stands in
// certificates, on the wire and in file names, so it has one spelling only.
func CheckName(s string) error {
	if s == "" || len(s) > nameBytesMax {
		return fmt.Errorf("%w: %d characters, want 1 to %d", ErrName, len(s), nameBytesMax)
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' && i > 0 && i < len(s)-1) {
			return fmt.Errorf("%w: %q, want lower case letters, digits and inner hyphens", ErrName, s)
		}
	}
	return nil
}

// Check tells whether id is a name and an incarnation of letters, digits and
// hyphens.
func (id ServerID) Check() error {
	if err := CheckName(id.Name()); err != nil {
		return fmt.Errorf("server id: %w", err)
	}
	incarnation := id.Incarnation()
	if incarnation == "" || len(incarnation) > incarnationBytesMax {
		return fmt.Errorf("server id: %w: incarnation of %d characters, want 1 to %d", ErrName, len(incarnation), incarnationBytesMax)
	}
	for i := range len(incarnation) {
		c := incarnation[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-') {
			return fmt.Errorf("server id: %w: incarnation %q", ErrName, incarnation)
		}
	}
	return nil
}

// role is what a certificate entitles its bearer to. It is the first element of
// the URI's path. Each certificate has one role: a node is never an operator.
type role string

// roleNode may speak Raft and the peer service.
const roleNode role = "node"

// A principal is whom a certificate speaks for.
type principal struct {
	Cluster string
	Role    role
	Name    string
}

// scheme is that of the URI in certificates.
const scheme = "holdfast"

func (p principal) uri() *url.URL {
	return &url.URL{Scheme: scheme, Host: p.Cluster, Path: "/" + string(p.Role) + "/" + p.Name}
}

// principalOf reads the certificate's one URI. Two URIs would let a certificate
// be two things, depending on who looks.
func principalOf(cert *x509.Certificate) (principal, error) {
	if len(cert.URIs) != 1 {
		return principal{}, fmt.Errorf("%w: certificate has %d URIs, want one", ErrWrongRole, len(cert.URIs))
	}
	u := cert.URIs[0]
	elements := strings.Split(strings.TrimPrefix(u.Path, "/"), "/")
	if len(elements) != 2 {
		return principal{}, fmt.Errorf("%w: certificate for %q", ErrWrongRole, u)
	}
	p := principal{Cluster: u.Host, Role: role(elements[0]), Name: elements[1]}
	// The comparison refuses user info, ports, queries, escapes and whatever
	// else a URL can carry that p does not.
	if CheckName(p.Cluster) != nil || CheckName(p.Name) != nil || u.String() != p.uri().String() {
		return principal{}, fmt.Errorf("%w: certificate for %q", ErrWrongRole, u)
	}
	return p, nil
}
