package config

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// host is a directory with a configuration and all that it names, as it should
// be.
func host(t *testing.T) (dir, file string) {
	t.Helper()
	dir = t.TempDir()
	file = filepath.Join(dir, "f")
	write(t, file, strings.Replace(minimal, "/var/lib/holdfast", "data", 1), 0o644)
	write(t, filepath.Join(dir, "gossip.key"), base64.StdEncoding.EncodeToString(make([]byte, GossipKeyBytes))+"\n", 0o600)
	year := time.Now().Add(365 * 24 * time.Hour)
	for _, base := range []string{"ca", "node", "smtp"} {
		pair(t, dir, base, time.Now().Add(-time.Hour), year)
	}
	return dir, file
}

func write(t *testing.T, file, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(file, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(file, mode); err != nil { // whatever the umask is
		t.Fatal(err)
	}
}

// pair writes a certificate signed by itself, and its key.
func pair(t *testing.T, dir, base string, from, until time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: base}, NotBefore: from, NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, base+".crt"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), 0o644)
	write(t, filepath.Join(dir, base+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})), 0o600)
}

func TestLoadAcceptsAHostAsItShouldBe(t *testing.T) {
	dir, file := host(t)
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("it warns: %v", c.Warnings)
	}
	if want := filepath.Join(dir, "data"); c.DataDir != want {
		t.Errorf("data_dir is %s, want %s", c.DataDir, want)
	}
	if key, err := ReadGossipKey(c.GossipKeyFile); err != nil || len(key) != GossipKeyBytes {
		t.Errorf("gossip key of %d bytes, %v", len(key), err)
	}
}

// TestBadHosts spoils one thing of a host each. DIR stands for its directory.
func TestBadHosts(t *testing.T) {
	day := 24 * time.Hour
	for _, test := range []struct {
		name  string
		spoil func(t *testing.T, dir string)
		want  string
	}{
		{"key that everybody may read", func(t *testing.T, dir string) { chmod(t, dir, "node.key", 0o644) },
			"f:11: key: DIR/node.key is secret, but others may open it (mode 0644): run chmod 0600 DIR/node.key"},
		{"key that the group may write", func(t *testing.T, dir string) { chmod(t, dir, "smtp.key", 0o660) },
			"f:14: smtp_key: DIR/smtp.key is secret, but others may open it (mode 0660): run chmod 0600 DIR/smtp.key"},
		{"gossip key that everybody may read", func(t *testing.T, dir string) { chmod(t, dir, "gossip.key", 0o604) },
			"f:8: gossip_key_file: DIR/gossip.key is secret, but others may open it (mode 0604): run chmod 0600 DIR/gossip.key"},
		{"short gossip key", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "gossip.key"), "AAAA\n", 0o600) },
			`f:8: gossip_key_file: DIR/gossip.key holds no gossip key of 32 bytes in base64: make one with "holdfast gossip-key"`},
		{"missing key", func(t *testing.T, dir string) { remove(t, dir, "node.key") },
			"f:11: key: DIR/node.key does not exist: correct the path, or make the file"},
		{"missing CA", func(t *testing.T, dir string) { remove(t, dir, "ca.crt") },
			"f:9: ca: DIR/ca.crt does not exist: correct the path, or make the file"},
		{"CA is a key", func(t *testing.T, dir string) { rename(t, dir, "ca.key", "ca.crt") },
			"f:9: ca: DIR/ca.crt holds no certificate in PEM"},
		{"certificate is a directory", func(t *testing.T, dir string) {
			remove(t, dir, "node.crt")
			if err := os.Mkdir(filepath.Join(dir, "node.crt"), 0o755); err != nil {
				t.Fatal(err)
			}
		}, "f:10: cert: DIR/node.crt is a directory: give the path of a file"},
		{"key of another certificate", func(t *testing.T, dir string) { rename(t, dir, "smtp.key", "node.key") },
			"f:11: key: DIR/node.key is no key for the certificate DIR/node.crt: tls: private key does not match public key\n" +
				"f:14: smtp_key: DIR/smtp.key does not exist: correct the path, or make the file"},
		{"expired", func(t *testing.T, dir string) {
			pair(t, dir, "node", time.Now().Add(-2*day), time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC))
		}, "f:10: cert: DIR/node.crt expired on 2026-01-02: issue a new one"},
		{"not yet valid", func(t *testing.T, dir string) {
			pair(t, dir, "smtp", time.Date(2999, 1, 2, 0, 0, 0, 0, time.UTC), time.Date(2999, 1, 3, 0, 0, 0, 0, time.UTC))
		}, "f:13: smtp_cert: DIR/smtp.crt is valid from 2999-01-02T00:00:00Z on: check this host's clock"},
		{"data directory is a file", func(t *testing.T, dir string) { write(t, filepath.Join(dir, "data"), "", 0o600) },
			"f:4: data_dir: DIR/data is no directory: give one"},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir, file := host(t)
			test.spoil(t, dir)
			c, err := Load(file)
			if c != nil || err == nil {
				t.Fatalf("accepted: %+v, %v", c, err)
			}
			got := strings.ReplaceAll(strings.ReplaceAll(err.Error(), file+":", "f:"), dir, "DIR")
			if got != test.want {
				t.Errorf("got  %s\nwant %s", got, test.want)
			}
		})
	}
}

func TestACertificateThatEndsSoonIsWarnedAbout(t *testing.T) {
	dir, file := host(t)
	pair(t, dir, "node", time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour))
	c, err := Load(file)
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) != 1 || c.Warnings[0].Key != "cert" || !strings.Contains(c.Warnings[0].Text, "expires on") {
		t.Errorf("warnings: %v", c.Warnings)
	}
}

func chmod(t *testing.T, dir, file string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(filepath.Join(dir, file), mode); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, dir, file string) {
	t.Helper()
	if err := os.Remove(filepath.Join(dir, file)); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, dir, from, to string) {
	t.Helper()
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		t.Fatal(err)
	}
}
