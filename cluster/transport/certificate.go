package transport

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"time"
)

// The life of certificates. They are long since nothing renews them by itself
// yet, and a removed node is refused by its server id, not by expiry.
const (
	CALifetime   = 10 * 365 * 24 * time.Hour
	NodeLifetime = 5 * 365 * 24 * time.Hour

	// certificateBackdate is how far the clock of a node may be behind that of
	// the host on which its certificate was issued.
	certificateBackdate = time.Hour
)

// A Pair is a certificate and its private key, each as PEM.
type Pair struct {
	Cert []byte
	Key  []byte
}

// CreateCA makes the certificate authority of a cluster. Its certificate names
// the cluster, so that whatever it signs later belongs to that one.
func CreateCA(cluster string, now time.Time) (Pair, error) {
	if err := CheckName(cluster); err != nil {
		return Pair{}, fmt.Errorf("cluster: %w", err)
	}
	key, err := newKey()
	if err != nil {
		return Pair{}, err
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: "Holdfast CA of " + cluster},
		URIs:                  []*url.URL{{Scheme: scheme, Host: cluster, Path: "/ca"}},
		NotBefore:             now.Add(-certificateBackdate),
		NotAfter:              now.Add(CALifetime),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // it signs nodes, no further authorities
	}
	return sign(template, template, key, key)
}

// IssueNode makes the certificate of a node, signed by ca, for ca's cluster.
// The addresses, host names or IP addresses without port, are for people and
// foreign tools: nodes know one another by the name in the URI alone, so a node
// may move.
func IssueNode(ca Pair, name string, addresses []string, now time.Time) (Pair, error) {
	return issue(ca, roleNode, name, addresses, now)
}

func issue(ca Pair, r role, name string, addresses []string, now time.Time) (Pair, error) {
	if err := CheckName(name); err != nil {
		return Pair{}, fmt.Errorf("%s: %w", r, err)
	}
	parent, err := parseCertificate(ca.Cert)
	if err != nil {
		return Pair{}, fmt.Errorf("CA certificate: %w", err)
	}
	parentKey, err := parseKey(ca.Key)
	if err != nil {
		return Pair{}, fmt.Errorf("CA key: %w", err)
	}
	if !samePublicKey(parent, parentKey) {
		return Pair{}, fmt.Errorf("CA: %w", ErrKeyMismatch)
	}
	if err := checkDates(parent, now); err != nil {
		return Pair{}, fmt.Errorf("CA certificate: %w", err)
	}
	if !parent.IsCA || len(parent.URIs) != 1 || parent.URIs[0].Scheme != scheme || parent.URIs[0].Path != "/ca" {
		return Pair{}, fmt.Errorf("CA certificate: %w: not made by CreateCA", ErrWrongRole)
	}
	p := principal{Cluster: parent.URIs[0].Host, Role: r, Name: name}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: name + "." + p.Cluster},
		URIs:        []*url.URL{p.uri()},
		NotBefore:   now.Add(-certificateBackdate),
		NotAfter:    now.Add(NodeLifetime),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		// Valid for no authority: a node's key can sign no certificate.
		BasicConstraintsValid: true,
	}
	if template.NotAfter.After(parent.NotAfter) {
		template.NotAfter = parent.NotAfter // Nobody would trust it longer.
	}
	for _, a := range addresses {
		if ip := net.ParseIP(a); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, a)
		}
	}
	key, err := newKey()
	if err != nil {
		return Pair{}, err
	}
	return sign(template, parent, key, parentKey)
}

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("generate key: %w", err)
	}
	return key, nil
}

// sign returns the pair of template and key, signed by parent. CreateCertificate
// draws the serial number where the template has none.
func sign(template, parent *x509.Certificate, key *ecdsa.PrivateKey, parentKey crypto.Signer) (Pair, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		return Pair{}, fmt.Errorf("sign certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return Pair{}, fmt.Errorf("encode key: %w", err)
	}
	return Pair{
		Cert: pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}),
		Key:  pem.EncodeToMemory(&pem.Block{Type: pemKey, Bytes: keyDER}),
	}, nil
}

// The PEM types that we write and read.
const (
	pemCertificate = "CERTIFICATE"
	pemKey         = "PRIVATE KEY"
)

func parseCertificate(data []byte) (*x509.Certificate, error) {
	block, rest := pem.Decode(data)
	if block == nil || block.Type != pemCertificate {
		return nil, errors.New("no PEM certificate")
	}
	if len(bytes.TrimSpace(rest)) > 0 {
		return nil, errors.New("more than one PEM certificate")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate: %w", err)
	}
	return cert, nil
}

func parseKey(data []byte) (crypto.Signer, error) {
	block, _ := pem.Decode(data)
	if block == nil || block.Type != pemKey {
		return nil, errors.New("no PEM private key (PKCS #8)")
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse private key: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("private key cannot sign")
	}
	return signer, nil
}

func samePublicKey(cert *x509.Certificate, key crypto.Signer) bool {
	pub, ok := cert.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	return ok && pub.Equal(key.Public())
}

// The modes of the files that WriteFiles makes.
const (
	certMode os.FileMode = 0o644
	keyMode  os.FileMode = 0o600
)

// WriteFiles writes dir/base.crt and dir/base.key, the key readable by its
// owner only, and returns their names. It never overwrites: where one of them
// is there already, nothing is written and the error is os.ErrExist. A CA key
// that was replaced by mistake would cut the cluster in two.
func (p Pair) WriteFiles(dir, base string) (certFile, keyFile string, err error) {
	certFile, keyFile = pairFiles(dir, base)
	for _, name := range []string{certFile, keyFile} {
		if _, err := os.Lstat(name); err == nil {
			return "", "", fmt.Errorf("write %s: %w", name, os.ErrExist)
		}
	}
	if err := writeNewFile(keyFile, p.Key, keyMode); err != nil {
		return "", "", err
	}
	if err := writeNewFile(certFile, p.Cert, certMode); err != nil {
		return "", "", errors.Join(err, os.Remove(keyFile))
	}
	return certFile, keyFile, nil
}

// ReadPair reads what WriteFiles wrote. It refuses a key that others can read.
func ReadPair(dir, base string) (Pair, error) {
	certFile, keyFile := pairFiles(dir, base)
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return Pair{}, fmt.Errorf("read certificate: %w", err)
	}
	key, err := readKeyFile(keyFile)
	if err != nil {
		return Pair{}, err
	}
	return Pair{Cert: cert, Key: key}, nil
}

func pairFiles(dir, base string) (certFile, keyFile string) {
	return filepath.Join(dir, base+".crt"), filepath.Join(dir, base+".key")
}

// writeNewFile writes a file that must not exist yet, durably.
func writeNewFile(name string, data []byte, mode os.FileMode) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return fmt.Errorf("create file: %w", err)
	}
	defer func() {
		if err = errors.Join(err, f.Close()); err != nil {
			err = fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(name)))
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	return f.Sync()
}

// readKeyFile reads a private key, and refuses one that group or others may
// touch: a key that was readable once must be taken for known.
func readKeyFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read key: %s is not a regular file", name)
	}
	if info.Mode().Perm()&keyModeForbidden != 0 {
		return nil, fmt.Errorf("%w: %s has mode %04o, want 0600 or 0640", ErrKeyReadable, name, info.Mode().Perm())
	}
	if info.Size() > keyBytesMax {
		return nil, fmt.Errorf("read key: %s has %d bytes, want at most %d", name, info.Size(), keyBytesMax)
	}
	data := make([]byte, info.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	return data, nil
}

// keyModeForbidden are the permission bits that a key must not have. The group
// may read, as is common where a service user reads what root owns.
const keyModeForbidden os.FileMode = 0o037

// keyBytesMax is more than any key in PEM needs.
const keyBytesMax = 64 << 10
