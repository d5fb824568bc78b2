package delivery

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/mail"
	"net/netip"
	"strings"
	"testing"
	"time"

	fsmmail "github.com/holdfast-mx/holdfast/fsm/mail"
)

func serverTLS(t *testing.T) *tls.Config {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Unix(0, 0), NotAfter: time.Unix(1<<33, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func TestReceivedField(t *testing.T) {
	id := fsmmail.MintQueueID(1_700_000_000_000, [10]byte{1})
	e := fsmmail.Envelope{
		Recipients: []fsmmail.Recipient{{Path: fsmmail.ForwardPath{Mailbox: fsmmail.Mailbox{Local: "user", Host: "example.test"}}}},
		Trace: fsmmail.Trace{
			Hello: "Client.test", Client: netip.MustParseAddr("2001:db8::7"), Node: "mx1.backup.test",
			Protocol: "ESMTPS", TLS: "TLS1.3 TLS_AES_128_GCM_SHA256", Received: 1_700_000_000,
		},
	}
	want := "Received: from client.test ([IPv6:2001:db8::7]) by mx1.backup.test with ESMTPS\r\n" +
		"\t(TLS1.3 TLS_AES_128_GCM_SHA256) id " + id.String() + "\r\n" +
		"\tfor <user@example.test>; Tue, 14 Nov 2023 22:13:20 +0000\r\n"
	if got := string(traceFields(id, e, "")); got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	e.Recipients = append(e.Recipients, e.Recipients[0])
	if got := string(traceFields(id, e, "")); strings.Contains(got, "for <") {
		t.Errorf("shows one of several recipients: %q", got)
	}
}

// Nothing that a client says makes a second line, clause or comment.
func TestReceivedFieldCannotBeInjected(t *testing.T) {
	hostile := []string{
		"x\r\nSubject: forged", "a by evil.test", "a (b)", "a;b", "[192.0.2.1] by x", "[::1]", "[IPv6:192.0.2.1]", "é.test", "a\x00", "", strings.Repeat("a", 5000), "x)\\(",
	}
	for _, h := range hostile {
		e := fsmmail.Envelope{
			Recipients: []fsmmail.Recipient{{Path: fsmmail.ForwardPath{Mailbox: fsmmail.Mailbox{Local: "\"a\r\nb\"", Host: "example.test"}}}},
			Trace:      fsmmail.Trace{Hello: h, Node: h, Protocol: h, TLS: h, Received: 1 << 62},
		}
		got := string(traceFields(fsmmail.QueueID{}, e, ""))
		m, err := mail.ReadMessage(strings.NewReader(got + "\r\n"))
		if err != nil || len(m.Header) != 1 || len(m.Header["Received"]) != 1 {
			t.Errorf("%q: %q, %v", h, got, err)
			continue
		}
		field := m.Header.Get("Received")
		if before, rest, ok := strings.Cut(field, "("); ok { // a comment may say anything
			_, after, _ := strings.Cut(rest, ")")
			field = before + after
		}
		if strings.Count(field, " by ") != 1 || strings.Count(field, ";") != 1 || strings.ContainsAny(strings.ReplaceAll(got, "\r\n", ""), "\r\n\x00") {
			t.Errorf("%q: %q", h, got)
		}
		_, date, _ := strings.Cut(field, ";")
		if _, err := mail.ParseDate(strings.TrimSpace(date)); err != nil {
			t.Errorf("%q: %v", h, err)
		}
	}
}

func TestHelloNamesKept(t *testing.T) {
	for in, want := range map[string]string{
		"mail.client.test": "mail.client.test", "[192.0.2.1]": "[192.0.2.1]", "[IPv6:2001:db8::1]": "[IPv6:2001:db8::1]",
		"bücher.test": "xn--bcher-kva.test", "localhost": "localhost", "a.test.": "a.test", "a b": "unknown", "[1]": "unknown",
	} {
		if got := helloName(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}
