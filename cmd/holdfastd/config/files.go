package config

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// nonblock keeps an open of a FIFO from waiting for its writer.
const nonblock = unix.O_NONBLOCK

// GossipKeyBytes is the length of a gossip key: AES-256.
const GossipKeyBytes = 32

// certificateSoon is how long before its end a certificate is warned about.
const certificateSoon = 14 * 24 * time.Hour

// ReadGossipKey reads a key file: GossipKeyBytes random bytes in base64, on one
// line, readable by the daemon's user alone.
func ReadGossipKey(path string) ([]byte, error) {
	data, err := readSecret(path)
	if err != nil {
		return nil, err
	}
	key, err := base64.StdEncoding.DecodeString(string(bytes.TrimSpace(data)))
	if err != nil || len(key) != GossipKeyBytes {
		return nil, fmt.Errorf(`%s holds no gossip key of %d bytes in base64: make one with "holdfast gossip-key"`, path, GossipKeyBytes)
	}
	return key, nil
}

// secretModeForbidden are the permission bits that a secret file must not have.
// The group may read, as where a service user reads what root owns.
const secretModeForbidden = 0o037

// readSecret reads a file, and refuses one that others may open.
func readSecret(path string) ([]byte, error) {
	data, err := readFile(path)
	if err != nil {
		return nil, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); mode&secretModeForbidden != 0 {
		return nil, fmt.Errorf("%s is secret, but others may open it (mode %04o): run chmod 0600 %s", path, mode, path)
	}
	return data, nil
}

func readFile(path string) ([]byte, error) {
	data, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	return data, nil
}

// checkFiles looks at every file that the configuration names.
func (c *Config) checkFiles(file string, at lines, now time.Time, problems *Problems) {
	refuse := func(key string, err error) {
		*problems = append(*problems, Problem{file, at.of(key), key, err.Error()})
	}
	warn := func(key, text string) {
		c.Warnings = append(c.Warnings, Problem{file, at.of(key), key, text})
	}
	if info, err := os.Stat(c.DataDir); err == nil && !info.IsDir() {
		refuse("data_dir", fmt.Errorf("%s is no directory: give one", c.DataDir))
	}
	if _, err := ReadGossipKey(c.GossipKeyFile); err != nil {
		refuse("gossip_key_file", err)
	}
	if data, err := readFile(c.CA); err != nil {
		refuse("ca", err)
	} else if !x509.NewCertPool().AppendCertsFromPEM(data) {
		refuse("ca", fmt.Errorf("%s holds no certificate in PEM", c.CA))
	}
	checkPair(c.Cert, c.Key, "cert", "key", now, refuse, warn)
	if c.SMTPCert != "" {
		checkPair(c.SMTPCert, c.SMTPKey, "smtp_cert", "smtp_key", now, refuse, warn)
	}
}

// checkPair refuses a certificate that its key does not fit, or that is not
// valid now.
func checkPair(certFile, keyFile, certKey, keyKey string, now time.Time, refuse func(string, error), warn func(key, text string)) {
	certPEM, certErr := readFile(certFile)
	if certErr != nil {
		refuse(certKey, certErr)
	}
	keyPEM, keyErr := readSecret(keyFile)
	if keyErr != nil {
		refuse(keyKey, keyErr)
	}
	if certErr != nil || keyErr != nil {
		return
	}
	leaf, err := firstCertificate(certPEM)
	if err != nil {
		refuse(certKey, fmt.Errorf("%s holds no certificate in PEM: %w", certFile, err))
		return
	}
	if _, err := tls.X509KeyPair(certPEM, keyPEM); err != nil {
		refuse(keyKey, fmt.Errorf("%s is no key for the certificate %s: %w", keyFile, certFile, err))
		return
	}
	switch {
	case now.After(leaf.NotAfter):
		refuse(certKey, fmt.Errorf("%s expired on %s: issue a new one", certFile, leaf.NotAfter.UTC().Format(time.DateOnly)))
	case now.Before(leaf.NotBefore):
		refuse(certKey, fmt.Errorf("%s is valid from %s on: check this host's clock", certFile, leaf.NotBefore.UTC().Format(time.RFC3339)))
	case now.Add(certificateSoon).After(leaf.NotAfter):
		warn(certKey, fmt.Sprintf("%s expires on %s: issue a new one", certFile, leaf.NotAfter.UTC().Format(time.DateOnly)))
	}
}

func firstCertificate(data []byte) (*x509.Certificate, error) {
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return nil, errors.New("no CERTIFICATE block")
		}
		if block.Type == "CERTIFICATE" {
			return x509.ParseCertificate(block.Bytes)
		}
		data = rest
	}
}
