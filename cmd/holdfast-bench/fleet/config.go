package fleet

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// config is the configuration file of a node.
func (f *Fleet) config(n *Node) string {
	var join []string
	for _, other := range f.Nodes {
		if other != n {
			join = append(join, strconv.Quote(other.Gossip))
		}
	}
	in := func(name string) string { return strconv.Quote(filepath.Join(n.Dir, name)) }
	settings := map[string]string{
		"cluster":         strconv.Quote(f.o.Cluster),
		"node":            strconv.Quote(n.Name),
		"hostname":        strconv.Quote(hostname(n.Name)),
		"data_dir":        in("data"),
		"smtp_listen":     "[" + strconv.Quote(n.SMTP) + "]",
		"cluster_listen":  strconv.Quote(n.Cluster),
		"gossip_listen":   strconv.Quote(n.Gossip),
		"gossip_key_file": in("gossip.key"),
		"ca":              in("ca.crt"),
		"cert":            in("node.crt"),
		"key":             in("node.key"),
		"join":            "[" + strings.Join(join, ", ") + "]",
		// The file may be on a developer's full disk.
		"disk_free_min_percent": "1",
		"bootstrap_expect":      strconv.Itoa(len(f.Nodes)),
		"latency":               `"lan"`,
		"admin_socket":          strconv.Quote(n.Socket),
	}
	if f.o.STARTTLS {
		settings["smtp_cert"], settings["smtp_key"] = in("smtp.crt"), in("smtp.key")
	}
	maps.Copy(settings, f.o.Settings)
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(&b, "%s = %s\n", key, settings[key])
	}
	return b.String()
}

// writeCertificate makes dir/smtp.crt and dir/smtp.key, signed by itself.
func writeCertificate(dir, name string) error {
	certPEM, keyPEM, err := SelfSigned(name)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "smtp.crt"), certPEM, 0o644); err != nil {
		return fmt.Errorf("write certificate: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "smtp.key"), keyPEM, 0o600); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return nil
}

// SelfSigned makes a certificate and key in PEM for an SMTP server, signed by
// itself and valid for two months.
func SelfSigned(name string) (certPEM, keyPEM []byte, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make key: %w", err)
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(60 * 24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, nil, fmt.Errorf("make certificate: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("encode key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
