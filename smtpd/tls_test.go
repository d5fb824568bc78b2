package smtpd_test

import (
	"io"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/smtpd"
)

func withTLS(t testing.TB) func(*smtpd.Config) {
	tlsConfig := certificate(t)
	return func(c *smtpd.Config) { c.TLS = tlsConfig }
}

// TestRFC3207 is the ordinary story, and what the trace says of it.
func TestRFC3207(t *testing.T) {
	q := newFakeQueue()
	_, addr := start(t, q, withTLS(t))
	c := dial(t, addr)
	c.expect("220 ")
	c.do("STARTTLS", "503 5.5.1")
	c.send("EHLO plain.example\r\n")
	if last := c.reply(); last != "250 STARTTLS" {
		t.Fatalf("EHLO ends with %q", last)
	}
	c.do("STARTTLS now", "501 5.5.4")
	c.do("MAIL FROM:<plain@sender.example>", "250 ")
	c.do("RCPT TO:<plain@example.test>", "250 ")
	c.startTLS()
	// What was said in the clear is forgotten (section 4.2).
	c.do("RCPT TO:<b@example.test>", "503 5.5.1")
	c.do("MAIL FROM:<a@sender.example>", "503 5.5.1")
	c.send("EHLO secret.example\r\n")
	if last := c.reply(); last == "250 STARTTLS" {
		t.Fatal("STARTTLS offered under TLS")
	}
	c.do("STARTTLS", "503 5.5.1")
	c.do("MAIL FROM:<a@sender.example> SMTPUTF8", "250 ")
	c.do("RCPT TO:<b@example.test>", "250 ")
	c.do("DATA", "354")
	body := strings.Repeat("a line under TLS\r\n", 10_000)
	c.send(body + ".\r\n")
	c.expect("250 ")
	c.do("QUIT", "221 ")
	c.expectSilentEnd()
	m := q.only(t)
	if m.body != body || m.envelope.From.String() != "a@sender.example" || len(m.envelope.Recipients) != 1 {
		t.Fatalf("stored %v", m.envelope)
	}
	tr := m.envelope.Trace
	if tr.Protocol != "UTF8SMTPS" || !strings.HasPrefix(tr.TLS, "TLS1.3 TLS_") || tr.Hello != "secret.example" ||
		tr.Node != hostname || tr.Received != 1_700_000_000 || !tr.Client.IsLoopback() {
		t.Fatalf("trace %+v", tr)
	}
}

// TestStartTLSInjection sends commands behind STARTTLS in the clear (RFC
// 3207 section 4.2, CVE-2011-0411): none of them may count.
func TestStartTLSInjection(t *testing.T) {
	q := newFakeQueue()
	_, addr := start(t, q, withTLS(t))
	for _, injected := range []string{"RSET\r\n", "MAIL FROM:<evil@sender.example>\r\n", "x"} {
		c := dial(t, addr)
		c.hello()
		c.send("STARTTLS\r\n" + injected)
		c.expect("554 5.5.0")
		c.expectSilentEnd()
	}
}

// TestBrokenHandshake: a handshake that fails ends the connection (RFC 3207
// section 4.1). go-smtp alone goes on in the clear.
func TestBrokenHandshake(t *testing.T) {
	q := newFakeQueue()
	s, addr := start(t, q, withTLS(t))
	c := dial(t, addr)
	c.hello()
	c.do("STARTTLS", "220 ")
	c.send("MAIL FROM:<a@sender.example>\r\nRCPT TO:<b@example.test>\r\nDATA\r\nx\r\n.\r\n")
	rest, _ := io.ReadAll(c.r)
	if strings.Contains(string(rest), "250") || strings.Contains(string(rest), "50") {
		t.Fatalf("commands were executed: %q", rest)
	}
	waitGone(t, s)
	if len(q.messages()) != 0 || s.GateStats().HandshakeFails.Load() != 1 {
		t.Fatal("a message came through a broken handshake")
	}
}
