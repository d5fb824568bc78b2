package transport

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// recast returns the CA with the same key under another cluster's name: what
// somebody has who runs two clusters with one authority.
func recast(t *testing.T, ca Pair, cluster string) Pair {
	t.Helper()
	cert, err := parseCertificate(ca.Cert)
	if err != nil {
		t.Fatal(err)
	}
	key, err := parseKey(ca.Key)
	if err != nil {
		t.Fatal(err)
	}
	template := *cert
	template.URIs = []*url.URL{{Scheme: scheme, Host: cluster, Path: "/ca"}}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return Pair{Cert: pem.EncodeToMemory(&pem.Block{Type: pemCertificate, Bytes: der}), Key: ca.Key}
}

func TestLoadIdentity(t *testing.T) {
	now := time.Now()
	ca, err := CreateCA("demo", now)
	if err != nil {
		t.Fatal(err)
	}
	other, err := CreateCA("demo", now)
	if err != nil {
		t.Fatal(err)
	}
	must := func(p Pair, err error) Pair {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	good := must(IssueNode(ca, "alpha", []string{"alpha.example", "192.0.2.1"}, now))
	old, err := CreateCA("demo", now.Add(-NodeLifetime-time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name string
		ca   Pair
		pair Pair
		mode os.FileMode
		want error
	}{
		{"proper", ca, good, 0o600, nil},
		{"group may read", ca, good, 0o640, nil},
		{"world-readable key", ca, good, 0o604, ErrKeyReadable},
		{"group-writable key", ca, good, 0o620, ErrKeyReadable},
		{"key of another certificate", ca, Pair{good.Cert, must(IssueNode(ca, "alpha", nil, now)).Key}, 0o600, ErrKeyMismatch},
		{"other CA", other, good, 0o600, ErrUntrusted},
		{"other cluster", ca, must(IssueNode(recast(t, ca, "other"), "alpha", nil, now)), 0o600, ErrWrongCluster},
		{"role admin", ca, must(issue(ca, "admin", "alpha", nil, now)), 0o600, ErrWrongRole},
		{"the CA's own pair", ca, ca, 0o600, ErrWrongRole},
		{"expired", old, must(IssueNode(old, "alpha", nil, now.Add(-NodeLifetime-time.Minute))), 0o600, ErrExpired},
		{"not yet valid", ca, must(IssueNode(ca, "alpha", nil, now.Add(24*time.Hour))), 0o600, ErrNotYetValid},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			caFile := filepath.Join(dir, "ca.crt")
			if err := os.WriteFile(caFile, tt.ca.Cert, 0o644); err != nil {
				t.Fatal(err)
			}
			certFile, keyFile, err := tt.pair.WriteFiles(dir, "node")
			if err != nil {
				t.Fatal(err)
			}
			if info, err := os.Stat(keyFile); err != nil || info.Mode().Perm() != 0o600 {
				t.Fatalf("key file: %v, %v, want mode 0600", info.Mode(), err)
			}
			if err := os.Chmod(keyFile, tt.mode); err != nil {
				t.Fatal(err)
			}
			id, err := LoadIdentity(caFile, certFile, keyFile, "demo")
			if tt.want != nil {
				if !errors.Is(err, tt.want) {
					t.Fatalf("LoadIdentity: %v, want %v", err, tt.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if id.Name() != "alpha" || id.Cluster() != "demo" {
				t.Fatalf("identity %s of %s", id.Name(), id.Cluster())
			}
		})
	}
}

func TestWriteFilesNeverOverwrites(t *testing.T) {
	ca, err := CreateCA("demo", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for _, there := range []string{"ca.crt", "ca.key"} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, there), []byte("mine"), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, _, err := ca.WriteFiles(dir, "ca"); !errors.Is(err, os.ErrExist) {
			t.Errorf("%s is there: %v, want ErrExist", there, err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 1 {
			t.Errorf("%s was there: now %v, %v", there, entries, err)
		}
		if data, _ := os.ReadFile(filepath.Join(dir, there)); string(data) != "mine" {
			t.Errorf("%s was overwritten", there)
		}
	}
	dir := t.TempDir()
	if _, _, err := ca.WriteFiles(dir, "ca"); err != nil {
		t.Fatal(err)
	}
	back, err := ReadPair(dir, "ca")
	if err != nil || string(back.Key) != string(ca.Key) || string(back.Cert) != string(ca.Cert) {
		t.Errorf("ReadPair: %v", err)
	}
}

func TestIssueRefuses(t *testing.T) {
	now := time.Now()
	ca, err := CreateCA("demo", now)
	if err != nil {
		t.Fatal(err)
	}
	node, err := IssueNode(ca, "alpha", nil, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := IssueNode(node, "beta", nil, now); !errors.Is(err, ErrWrongRole) {
		t.Errorf("signed by a node: %v", err)
	}
	if _, err := IssueNode(Pair{ca.Cert, node.Key}, "beta", nil, now); !errors.Is(err, ErrKeyMismatch) {
		t.Errorf("signed with another key: %v", err)
	}
	if _, err := IssueNode(ca, "beta", nil, now.Add(CALifetime+time.Hour)); !errors.Is(err, ErrExpired) {
		t.Errorf("signed by an expired CA: %v", err)
	}
	for _, name := range []string{"", "Alpha", "a.b", "-a", "a-", "a/b", "ä", "a b", "a\x00", strings.Repeat("a", 64)} {
		if _, err := IssueNode(ca, name, nil, now); !errors.Is(err, ErrName) {
			t.Errorf("IssueNode(%q): %v, want ErrName", name, err)
		}
		if _, err := CreateCA(name, now); !errors.Is(err, ErrName) {
			t.Errorf("CreateCA(%q): %v, want ErrName", name, err)
		}
	}
}

func TestPrincipalHasOneSpelling(t *testing.T) {
	for _, s := range []string{
		"holdfast://demo/node/a?x=1", "holdfast://u@demo/node/a", "holdfast://demo:1/node/a", "holdfast://demo/node/a#f",
		"holdfast://demo/node/%61", "holdfast://demo//node/a", "holdfast://demo/node/a/", "holdfast://demo/node/a/b",
		"https://demo/node/a", "holdfast://Demo/node/a", "holdfast://demo/node", "holdfast:demo/node/a", "holdfast:///node/a",
	} {
		u, err := url.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := principalOf(&x509.Certificate{URIs: []*url.URL{u}}); err == nil {
			t.Errorf("%s passes for %+v", s, p)
		}
	}
	u := principal{Cluster: "demo", Role: roleNode, Name: "a"}.uri()
	if p, err := principalOf(&x509.Certificate{URIs: []*url.URL{u}}); err != nil || p.Name != "a" || p.Role != roleNode {
		t.Errorf("%s: %+v, %v", u, p, err)
	}
	if _, err := principalOf(&x509.Certificate{URIs: []*url.URL{u, u}}); err == nil {
		t.Error("two URIs pass")
	}
}

func FuzzReadHello(f *testing.F) {
	f.Add(hello{1, "demo", "a/1", "b/1", 0}.encode())
	f.Add(hello{2, "demo", "a/1", "b/1", 1 << 40}.encode())
	f.Add([]byte{helloVersion, 0, 2, 200, 'x'})
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) == 0 {
			return
		}
		h, err := readHello(strings.NewReader(string(data)), data[0])
		if err == nil && string(h.encode()) != string(data[:len(h.encode())]) {
			t.Fatalf("%q decodes to %+v, which encodes to %q", data, h, h.encode())
		}
	})
}
