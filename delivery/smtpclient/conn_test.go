package smtpclient

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

var allExtensions = []string{"PIPELINING", "SIZE 52428800", "8BITMIME", "DSN", "SMTPUTF8", "ENHANCEDSTATUSCODES"}

// serve dials p.
func serve(p *deliverytest.Primary) net.Conn {
	client, server := deliverytest.Pipe()
	go p.Serve(server)
	return client
}

// open opens a conversation with p.
func open(t *testing.T, p *deliverytest.Primary) *Conn {
	t.Helper()
	c, err := Open(t.Context(), serve(p), Options{Hello: "node.test", TLS: &tls.Config{InsecureSkipVerify: true}})
	if err != nil {
		t.Fatalf("Open: %v", err)
	}
	t.Cleanup(c.Abort)
	return c
}

func certificate(t *testing.T) *tls.Config {
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

func reversePath(t *testing.T, s string) mail.ReversePath {
	t.Helper()
	p, err := mail.ParseReversePath(s, true)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func recipients(t *testing.T, addresses ...string) []mail.Recipient {
	t.Helper()
	var out []mail.Recipient
	for _, a := range addresses {
		p, err := mail.ParseForwardPath(a, true)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, mail.Recipient{Path: p})
	}
	return out
}

// send takes a transaction through all its steps.
func send(t *testing.T, c *Conn, tx Transaction, content string) (Answer, mail.Reply) {
	t.Helper()
	answer, err := c.Begin(t.Context(), tx)
	if err != nil {
		t.Fatalf("Begin: %v", err)
	}
	if !answer.Open {
		return answer, mail.Reply{}
	}
	if err := c.Body(t.Context(), []byte("Received: x\r\n"), strings.NewReader(content)); err != nil {
		t.Fatalf("Body: %v", err)
	}
	reply, err := c.Dot(t.Context())
	if err != nil {
		t.Fatalf("Dot: %v", err)
	}
	return answer, reply
}

func plain(t *testing.T) Transaction {
	return Transaction{From: reversePath(t, "sender@client.test"), Recipients: recipients(t, "a@example.test")}
}

func TestContentIsExact(t *testing.T) {
	contents := map[string]string{
		"plain":          "Subject: x\r\n\r\nhello\r\n",
		"empty":          "",
		"one dot":        ".\r\n",
		"dots":           ".\r\n..\r\n.x\r\n...\r\nx.\r\n",
		"line of 998":    strings.Repeat("a", 998) + "\r\n",
		"line of 5000":   "." + strings.Repeat("b", 5000) + "\r\n.\r\n",
		"eight bit":      "Subject: \xc3\xbc\r\n\r\n\xff\xfe\x80\x00\r\n",
		"looks like end": "a\r\n.\r\nQUIT\r\n\r\n.\r\n",
		"several blocks": strings.Repeat(strings.Repeat("0123456789", 7)+"\r\n.", 9000) + "\r\n",
	}
	for name, content := range contents {
		for _, extensions := range [][]string{nil, allExtensions} {
			t.Run(name, func(t *testing.T) {
				p := &deliverytest.Primary{Extensions: extensions}
				_, reply := send(t, open(t, p), plain(t), content)
				if reply.Code != 250 || reply.Enhanced != (mail.EnhancedCode{2, 0, 0}) || reply.Text != "taken" {
					t.Fatalf("reply %+v", reply)
				}
				got := p.Received()
				if len(got) != 1 || string(got[0].Octets) != "Received: x\r\n"+content {
					t.Fatalf("got %d messages, octets differ", len(got))
				}
			})
		}
	}
}

// Blocks may end anywhere: between CR and LF, before and after a dot.
func TestStufferAtEveryCut(t *testing.T) {
	const content = ".a\r\n..\r\n\r\nb.\r\n.\r\n"
	const want = "..a\r\n...\r\n\r\nb.\r\n..\r\n"
	for i := range len(content) {
		for j := i; j <= len(content); j++ {
			var out bytes.Buffer
			c := &Conn{}
			w := newTestWriter(&out)
			for _, part := range []string{content[:i], content[i:j], content[j:]} {
				if err := c.content.write(w, []byte(part)); err != nil {
					t.Fatalf("cut at %d,%d: %v", i, j, err)
				}
			}
			if err := c.content.close(w); err != nil {
				t.Fatal(err)
			}
			_ = w.Flush()
			if out.String() != want {
				t.Fatalf("cut at %d,%d: %q", i, j, out.String())
			}
		}
	}
}

// What one server takes for the end of a line, and another not, never goes out.
func TestStrayCRAndLFAreRefused(t *testing.T) {
	for _, content := range []string{
		"a\n.\nb\r\n", "a\r\n.\n", "\n", "a\r.\r\n", "a\r\r\n", "a\r\n.\rx\r\n", "a\r", "\ra\r\n", "x\n\r\n",
	} {
		p := &deliverytest.Primary{Extensions: allExtensions}
		c := open(t, p)
		if _, err := c.Begin(t.Context(), plain(t)); err != nil {
			t.Fatal(err)
		}
		// One octet at a time and at once: state must carry over.
		err := c.Body(t.Context(), nil, io.MultiReader(strings.NewReader(content[:1]), strings.NewReader(content[1:])))
		if !errors.Is(err, ErrStray) {
			t.Errorf("%q: %v", content, err)
		}
		if _, err := c.Dot(t.Context()); err == nil {
			t.Errorf("%q: a dot was sent", content)
		}
		if n := len(p.Received()); n != 0 {
			t.Errorf("%q: %d messages arrived", content, n)
		}
	}
}

func TestUnreadableContentClosesWithoutDot(t *testing.T) {
	p := &deliverytest.Primary{Extensions: allExtensions}
	c := open(t, p)
	if _, err := c.Begin(t.Context(), plain(t)); err != nil {
		t.Fatal(err)
	}
	corrupt := errors.New("corrupt")
	err := c.Body(t.Context(), nil, io.MultiReader(strings.NewReader("half\r\n"), failing{corrupt}))
	if !errors.Is(err, ErrSource) || !errors.Is(err, corrupt) {
		t.Fatalf("Body: %v", err)
	}
	if _, err := c.Dot(t.Context()); err == nil || errors.Is(err, ErrNoReply) {
		t.Fatalf("Dot: %v", err)
	}
	if c.Usable() || len(p.Received()) != 0 {
		t.Fatal("connection went on")
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestParametersAreSentWhereOffered(t *testing.T) {
	tx := plain(t)
	tx.Recipients = recipients(t, "a@example.test", "b@example.test")
	tx.Recipients[0].Notify = mail.NotifyFailure | mail.NotifyDelay
	tx.Recipients[0].Original = "rfc822;A+2Bx@example.test"
	tx.Recipients[1].Notify = mail.NotifyNever
	tx.Size, tx.EightBit, tx.Return, tx.EnvelopeID = 1234, true, mail.ReturnHeaders, "Q+2B1"

	p := &deliverytest.Primary{Extensions: []string{"size 99", "8bitmime", "dsn", "pipelining"}} // any case
	send(t, open(t, p), tx, "x\r\n")
	want := []string{
		"MAIL FROM:<sender@client.test> SIZE=1234 BODY=8BITMIME RET=HDRS ENVID=Q+2B1",
		"RCPT TO:<a@example.test> NOTIFY=FAILURE,DELAY ORCPT=rfc822;A+2Bx@example.test",
		"RCPT TO:<b@example.test> NOTIFY=NEVER", "DATA",
	}
	if got := p.Lines()[1:]; strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got %q", got)
	}
	p = &deliverytest.Primary{}
	send(t, open(t, p), tx, "x\r\n")
	if got := p.Lines()[1:4]; got[0] != "MAIL FROM:<sender@client.test>" || got[1] != "RCPT TO:<a@example.test>" {
		t.Errorf("got %q", got)
	}
}

// libraries that unquote local parts let a recipient's name become parameters.
func TestQuotedLocalPartsStayQuoted(t *testing.T) {
	const hostile = `"v> NOTIFY=NEVER ORCPT=rfc822;x"@example.test`
	tx := plain(t)
	tx.Recipients = recipients(t, hostile)
	tx.From = reversePath(t, `"a b\"c"@client.test`)
	p := &deliverytest.Primary{Extensions: allExtensions}
	send(t, open(t, p), tx, "x\r\n")
	lines := p.Lines()
	if lines[1] != `MAIL FROM:<"a b\"c"@client.test>` || lines[2] != `RCPT TO:<`+hostile+`>` {
		t.Fatalf("got %q", lines[1:3])
	}
	for _, m := range []mail.Mailbox{
		{Local: "v> NOTIFY=NEVER ORCPT=rfc822;x", Host: "example.test"},
		{Local: "a\r\nDATA", Host: "example.test"}, {Local: `"a`, Host: "example.test"},
		{Local: "a", Host: "example.test> X"}, {Local: "", Host: "example.test"}, {Local: "@x:a", Host: "example.test"},
	} {
		tx.Recipients = []mail.Recipient{{Path: mail.ForwardPath{Mailbox: m}}}
		c := open(t, p)
		if _, err := c.Begin(t.Context(), tx); !errors.Is(err, ErrUnsafe) {
			t.Errorf("%+v: %v", m, err)
		}
		if !c.Usable() {
			t.Errorf("%+v: connection is gone", m)
		}
	}
	tx.Recipients = recipients(t, "a@example.test")
	tx.Recipients[0].Original = "rfc822;x\r\nDATA"
	if _, err := open(t, p).Begin(t.Context(), tx); !errors.Is(err, ErrUnsafe) {
		t.Errorf("ORCPT: %v", err)
	}
}

func TestSMTPUTF8IsNeverDropped(t *testing.T) {
	tx := plain(t)
	tx.Recipients, tx.SMTPUTF8 = recipients(t, "pelé@example.test"), true
	p := &deliverytest.Primary{Extensions: []string{"PIPELINING"}}
	c := open(t, p)
	if _, err := c.Begin(t.Context(), tx); !errors.Is(err, ErrSMTPUTF8) {
		t.Fatal(err)
	}
	if _, reply := send(t, c, plain(t), "x\r\n"); reply.Code != 250 {
		t.Fatal("connection not usable afterwards")
	}
	p = &deliverytest.Primary{Extensions: allExtensions}
	send(t, open(t, p), tx, "x\r\n")
	if got := p.Lines()[1]; got != "MAIL FROM:<sender@client.test> SMTPUTF8" {
		t.Fatal(got)
	}
}

func TestPipeliningMixesReplies(t *testing.T) {
	for _, extensions := range [][]string{nil, allExtensions} {
		p := &deliverytest.Primary{Extensions: extensions}
		p.Answer = func(stage, line string) string {
			if stage == deliverytest.Rcpt {
				switch {
				case strings.Contains(line, "no@"):
					return "550-5.1.1 nobody\r\n550 5.1.1 of that name"
				case strings.Contains(line, "later@"):
					return "450 4.2.0 greylisted"
				}
			}
			return ""
		}
		tx := plain(t)
		tx.Recipients = recipients(t, "a@example.test", "no@example.test", "later@example.test", "b@example.test")
		c := open(t, p)
		answer, reply := send(t, c, tx, "x\r\n")
		codes := []int{}
		for _, r := range answer.Recipients {
			codes = append(codes, r.Code)
		}
		if !answer.Open || reply.Code != 250 || codes[0] != 250 || codes[1] != 550 || codes[2] != 450 || codes[3] != 250 {
			t.Fatalf("%v %v", codes, reply)
		}
		if r := answer.Recipients[1]; r.Enhanced != (mail.EnhancedCode{5, 1, 1}) || r.Text != "nobody of that name" {
			t.Fatalf("%+v", r)
		}
		if got := p.Received()[0].To; len(got) != 2 {
			t.Fatalf("delivered to %q", got)
		}
		// The connection serves a second message, with a RSET only where needed.
		if _, reply := send(t, c, plain(t), "y\r\n"); reply.Code != 250 {
			t.Fatal(reply)
		}
		if err := c.Quit(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestThousandRecipientsInGroups(t *testing.T) {
	tx := plain(t)
	tx.Recipients = nil
	for i := range 1000 {
		tx.Recipients = append(tx.Recipients, recipients(t, "u"+big.NewInt(int64(i)).String()+"@example.test")...)
	}
	p := &deliverytest.Primary{Extensions: allExtensions}
	if _, reply := send(t, open(t, p), tx, "x\r\n"); reply.Code != 250 || len(p.Received()[0].To) != 1000 {
		t.Fatal(reply)
	}
}

// RFC 2920 section 3.1: a 354 without recipients is ended by a lone dot.
func TestDataWithoutRecipients(t *testing.T) {
	p := &deliverytest.Primary{Extensions: allExtensions}
	p.Answer = func(stage, line string) string {
		switch {
		case stage == deliverytest.Rcpt && strings.Contains(line, "a@"):
			return "550 5.1.1 nobody"
		case stage == deliverytest.Data:
			return "354 whatever you say"
		}
		return ""
	}
	c := open(t, p)
	answer, err := c.Begin(t.Context(), plain(t))
	if err != nil || answer.Open {
		t.Fatalf("%+v %v", answer, err)
	}
	got := p.Received()
	if len(got) != 1 || len(got[0].Octets) != 0 || len(got[0].To) != 0 {
		t.Fatalf("%+v", got)
	}
	tx := plain(t)
	tx.Recipients = recipients(t, "b@example.test")
	if _, reply := send(t, c, tx, "x\r\n"); reply.Code != 250 {
		t.Fatal("connection not usable afterwards")
	}
}

func TestRefusedTransactionsLeaveTheConnectionUsable(t *testing.T) {
	for _, stage := range []string{deliverytest.Mail, deliverytest.Rcpt, deliverytest.Data, deliverytest.Dot} {
		for _, code := range []string{"451 4.0.0 no", "554 5.0.0 no"} {
			for _, extensions := range [][]string{nil, allExtensions} {
				p := &deliverytest.Primary{Extensions: extensions}
				refuse := true
				p.Answer = func(at, _ string) string {
					if refuse && at == stage {
						return code
					}
					return ""
				}
				c := open(t, p)
				answer, reply := send(t, c, plain(t), "x\r\n")
				said := map[string]mail.Reply{
					deliverytest.Mail: answer.Mail, deliverytest.Rcpt: answer.Recipients[0],
					deliverytest.Data: answer.Data, deliverytest.Dot: reply,
				}[stage]
				if said.String() != code || answer.Open != (stage == deliverytest.Dot) {
					t.Errorf("%s %s: %+v %v", stage, code, answer, reply)
				}
				refuse = false
				if _, reply := send(t, c, plain(t), "x\r\n"); reply.Code != 250 {
					t.Errorf("%s %s: second message: %v", stage, code, reply)
				}
			}
		}
	}
}
