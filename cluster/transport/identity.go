package transport

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"time"
)

// The reasons for which an identity, ours or a peer's, is refused.
var (
	// ErrKeyReadable: the private key's file is open to others.
	ErrKeyReadable = errors.New("private key can be read by others")
	// ErrKeyMismatch: the private key is not that of the certificate.
	ErrKeyMismatch = errors.New("private key does not belong to the certificate")
	// ErrExpired: the certificate's time has passed.
	ErrExpired = errors.New("certificate has expired")
	// ErrNotYetValid: the certificate's time has not come, or a clock is wrong.
	ErrNotYetValid = errors.New("certificate is not yet valid")
	// ErrUntrusted: the certificate is not signed by the cluster's CA.
	ErrUntrusted = errors.New("certificate is not signed by the cluster's CA")
	// ErrWrongCluster: the certificate, or the peer, is of another cluster.
	ErrWrongCluster = errors.New("wrong cluster")
	// ErrWrongRole: the certificate is not that of a node.
	ErrWrongRole = errors.New("wrong role")
	// ErrWrongName: the peer is a node, but not the one that it claims to be or
	// that was dialled.
	ErrWrongName = errors.New("wrong node name")
)

// An Identity is who we are: a node of a cluster, with the key that proves it
// and the CA that proves the others. It is immutable.
type Identity struct {
	cluster string
	name    string
	cert    tls.Certificate
	roots   *x509.CertPool
}

// Cluster returns the cluster's name.
func (id *Identity) Cluster() string { return id.cluster }

// ClusterID returns 16 hexadecimal digits that no other cluster has, whatever it
// is called: it is made from our name and the key of the CA that signed our
// certificate.
func (id *Identity) ClusterID() string {
	sum := sha256.Sum256(append([]byte(id.cluster+"/"), id.cert.Leaf.AuthorityKeyId...))
	return hex.EncodeToString(sum[:8])
}

// Name returns the node's name.
func (id *Identity) Name() string { return id.name }

// LoadIdentity reads the node's certificate and key, and the CA's certificate,
// and refuses whatever the peers would refuse, with the reason, so that a
// mistake shows at start and not as a node that nobody talks to. The errors are
// ErrKeyReadable, ErrKeyMismatch, ErrUntrusted, ErrExpired, ErrNotYetValid,
// ErrWrongCluster and ErrWrongRole.
func LoadIdentity(caFile, certFile, keyFile, cluster string) (*Identity, error) {
	ca, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read CA certificate: %w", err)
	}
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	key, err := readKeyFile(keyFile)
	if err != nil {
		return nil, err
	}
	id, err := NewIdentity(ca, Pair{Cert: cert, Key: key}, cluster)
	if err != nil {
		return nil, fmt.Errorf("identity from %s: %w", certFile, err)
	}
	return id, nil
}

// NewIdentity is LoadIdentity for values. The CA may be several certificates,
// so that one can be replaced by another.
func NewIdentity(ca []byte, node Pair, cluster string) (*Identity, error) {
	if err := CheckName(cluster); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(ca) {
		return nil, errors.New("CA certificate: no PEM certificate")
	}
	leaf, err := parseCertificate(node.Cert)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(node.Key)
	if err != nil {
		return nil, err
	}
	if !samePublicKey(leaf, key) {
		return nil, ErrKeyMismatch
	}
	p, err := verify(leaf, roots, cluster)
	if err != nil {
		return nil, err
	}
	return &Identity{
		cluster: cluster,
		name:    p.Name,
		cert:    tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf},
		roots:   roots,
	}, nil
}

// verify is the one judgement of a certificate, ours or a peer's: signed by the
// CA, in its time, of the cluster, a node's.
func verify(leaf *x509.Certificate, roots *x509.CertPool, cluster string) (principal, error) {
	now := time.Now()
	if err := checkDates(leaf, now); err != nil {
		return principal{}, err
	}
	// Go takes "any" of the usages listed; a node's certificate has both.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
		if err != nil {
			return principal{}, fmt.Errorf("%w: %w", ErrUntrusted, err)
		}
	}
	if leaf.IsCA {
		return principal{}, fmt.Errorf("%w: certificate of an authority", ErrWrongRole)
	}
	p, err := principalOf(leaf)
	if err != nil {
		return principal{}, err
	}
	if p.Cluster != cluster {
		return principal{}, fmt.Errorf("%w: certificate for %q, want %q", ErrWrongCluster, p.Cluster, cluster)
	}
	if p.Role != roleNode {
		return principal{}, fmt.Errorf("%w: certificate for a %q, want a %q", ErrWrongRole, p.Role, roleNode)
	}
	return p, nil
}

func checkDates(cert *x509.Certificate, now time.Time) error {
	if now.After(cert.NotAfter) {
		return fmt.Errorf("%w on %s", ErrExpired, cert.NotAfter.Format(time.DateOnly))
	}
	if now.Before(cert.NotBefore) {
		return fmt.Errorf("%w before %s", ErrNotYetValid, cert.NotBefore.Format(time.RFC3339))
	}
	return nil
}

// The ALPN names of the two protocols on the port. Of Raft's there are two
// versions, which differ in the hello frame; both sides of a connection know
// from the handshake which one the other speaks.
const (
	protocolRaft  = "holdfast-raft/2"
	protocolRaft1 = "holdfast-raft/1"
	protocolGRPC  = "holdfast-grpc/1"
)

// offered is what we say when we want a protocol.
func offered(protocol string) []string {
	if protocol == protocolRaft {
		return []string{protocolRaft, protocolRaft1}
	}
	return []string{protocol}
}

// serverConfig is how we answer. The checks are in VerifyConnection, which Go
// calls for every handshake, so there is one place and no way round it. The
// client's list of protocols decides; one without ours is refused by Go.
func (id *Identity) serverConfig() *tls.Config {
	c := id.config()
	c.NextProtos = []string{protocolRaft, protocolRaft1, protocolGRPC}
	c.ClientAuth = tls.RequireAnyClientCert
	c.VerifyConnection = func(s tls.ConnectionState) error { return id.verifyPeer(s, "") }
	return c
}

// clientConfig is how we call the node with the given name.
func (id *Identity) clientConfig(name, protocol string) *tls.Config {
	c := id.config()
	c.NextProtos = offered(protocol)
	// Go's own check compares host names, and nodes are known by their URI.
	// VerifyConnection replaces it.
	c.InsecureSkipVerify = true
	c.VerifyConnection = func(s tls.ConnectionState) error { return id.verifyPeer(s, name) }
	return c
}

func (id *Identity) config() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{id.cert},
		// No resumption: each connection proves its key anew.
		SessionTicketsDisabled: true,
	}
}

// verifyPeer judges the peer of a handshake. Without a wanted name any node of
// the cluster will do.
func (id *Identity) verifyPeer(s tls.ConnectionState, want string) error {
	if len(s.PeerCertificates) == 0 {
		return fmt.Errorf("%w: no certificate", ErrUntrusted)
	}
	// Go fails the handshake where both sides name protocols and none agrees,
	// but lets a client pass that names none.
	if s.NegotiatedProtocol == "" {
		return errors.New("no application protocol")
	}
	p, err := verify(s.PeerCertificates[0], id.roots, id.cluster)
	if err != nil {
		return err
	}
	if want != "" && p.Name != want {
		return fmt.Errorf("%w: %q answers, want %q", ErrWrongName, p.Name, want)
	}
	return nil
}
