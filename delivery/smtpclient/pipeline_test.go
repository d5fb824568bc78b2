package smtpclient

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// numbered is message n to the given recipients, else to one.
func numbered(t testing.TB, n int, to ...string) Transaction {
	if len(to) == 0 {
		to = []string{fmt.Sprintf("u%d@example.test", n)}
	}
	tx := Transaction{From: mail.ReversePath{Mailbox: mail.Mailbox{Local: fmt.Sprintf("s%d", n), Host: "client.test"}}}
	for _, a := range to {
		p, err := mail.ParseForwardPath(a, true)
		if err != nil {
			t.Fatal(err)
		}
		tx.Recipients = append(tx.Recipients, mail.Recipient{Path: p})
	}
	return tx
}

// contentOf is message n's content.
func contentOf(n int) string { return fmt.Sprintf("Subject: %d\r\n\r\n.%d\r\n", n, n) }

// body writes it.
func body(t testing.TB, c *Conn, n int) {
	t.Helper()
	if err := c.Body(t.Context(), nil, strings.NewReader(contentOf(n))); err != nil {
		t.Fatalf("Body %d: %v", n, err)
	}
}

// begin takes message n to where its content is due, and writes that.
func begin(t testing.TB, c *Conn, n int) {
	t.Helper()
	if answer, err := c.Begin(t.Context(), numbered(t, n)); err != nil || !answer.Open {
		t.Fatalf("Begin %d: %+v %v", n, answer, err)
	}
	body(t, c, n)
}

// dotThen sends the dot of one message and begins message n behind it.
func dotThen(t testing.TB, c *Conn, n int) {
	t.Helper()
	reply, begun, err := c.DotAndBegin(t.Context(), numbered(t, n))
	if err != nil || !begun || reply.Code != 250 {
		t.Fatalf("DotAndBegin %d: %v %v %v", n, reply, begun, err)
	}
}

// answered reads the replies to message n, which must be good, and writes its
// content.
func answered(t testing.TB, c *Conn, n int) {
	t.Helper()
	if answer, err := c.Answer(t.Context()); err != nil || !answer.Open || !answer.Mail.Positive() || !answer.taken() {
		t.Fatalf("Answer %d: %+v %v", n, answer, err)
	}
	body(t, c, n)
}

// dotOf ends the last message.
func dotOf(t testing.TB, c *Conn, n int) {
	t.Helper()
	if reply, err := c.Dot(t.Context()); err != nil || reply.Code != 250 {
		t.Fatalf("Dot %d: %v %v", n, reply, err)
	}
}

// sendAll sends messages 0 to count-1, each behind the dot of the one before.
func sendAll(t testing.TB, c *Conn, count int) {
	t.Helper()
	begin(t, c, 0)
	for n := 1; n < count; n++ {
		dotThen(t, c, n)
		answered(t, c, n)
	}
	dotOf(t, c, count-1)
}

// received checks that messages 0 to count-1 arrived, each whole and once, and
// nothing else.
func received(t testing.TB, p *deliverytest.Primary, count int) {
	t.Helper()
	got := p.Received()
	for n, r := range got {
		if string(r.Octets) != contentOf(n) || r.Mail != fmt.Sprintf("MAIL FROM:<s%d@client.test>", n) || len(r.To) == 0 {
			t.Errorf("message %d: %q %q %q", n, r.Mail, r.To, r.Octets)
		}
	}
	if len(got) != count {
		t.Errorf("%d messages arrived, want %d", len(got), count)
	}
}

// oneOctet reads one octet at a time.
type oneOctet struct{ net.Conn }

func (o oneOctet) Read(p []byte) (int, error) { return o.Conn.Read(p[:min(len(p), 1)]) }

// A wire keeps every write, and fails where it is told to.
type wire struct {
	net.Conn
	mu     sync.Mutex
	writes []string
	failAt string // the write that has this in it
	take   int    // fails so many octets behind the beginning of that
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writes = append(w.writes, string(p))
	if at := bytes.Index(p, []byte(w.failAt)); w.failAt != "" && at >= 0 {
		_, _ = w.Conn.Write(p[:at+w.take])
		return at + w.take, syscall.EPIPE
	}
	return w.Conn.Write(p)
}

func (w *wire) written() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.writes
}

// RFC 2920 section 3.1: content may be the first of a group. A message costs one
// turn, and a short one a single write; replies come all at once.
func TestOneTurnPerMessage(t *testing.T) {
	const count = 50
	for _, row := range []struct {
		extensions []string
		turns      int
	}{
		{allExtensions, count + 3},      // banner, EHLO, the first envelope, then one a message
		{[]string{"SIZE"}, 2 + 4*count}, // MAIL, RCPT, DATA, dot
	} {
		p := &deliverytest.Primary{Extensions: row.extensions}
		client, server := deliverytest.Pipe()
		turns := deliverytest.NewTurns(server)
		go p.Serve(turns)
		w := &wire{Conn: client}
		c, err := Open(t.Context(), w, Options{Hello: "node.test"})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Abort()
		if len(row.extensions) > 1 {
			sendAll(t, c, count)
			writes := w.written()
			if len(writes) != 2+count {
				t.Errorf("%d writes", len(writes))
			}
			if got := writes[2]; got != "Subject: 0\r\n\r\n..0\r\n.\r\nMAIL FROM:<s1@client.test>\r\nRCPT TO:<u1@example.test>\r\nDATA\r\n" {
				t.Errorf("written: %q", got)
			}
		} else {
			for n := range count {
				begin(t, c, n)
				if _, begun, err := c.DotAndBegin(t.Context(), numbered(t, n+1)); begun || err != nil {
					t.Fatal(begun, err)
				}
			}
		}
		received(t, p, count)
		if got := turns.Count(); got != row.turns {
			t.Errorf("%v: %d turns for %d messages, want %d", row.extensions, got, count, row.turns)
		}
	}
}

// However much of the content waits for the dot, the dot and what is behind it
// leave together.
func TestPipelinedBehindContentOfAnySize(t *testing.T) {
	p := &deliverytest.Primary{Extensions: allExtensions}
	w := &wire{Conn: serve(p)}
	c, err := Open(t.Context(), w, Options{Hello: "node.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	begin := func(n int) {
		t.Helper()
		if answer, err := c.Begin(t.Context(), numbered(t, n)); err != nil || !answer.Open {
			t.Fatalf("Begin %d: %+v %v", n, answer, err)
		}
	}
	var sizes []int
	for _, near := range []int{2, writeBufferBytes - dotBytesMax, writeBufferBytes, 2*writeBufferBytes - dotBytesMax, 2 * writeBufferBytes} {
		for d := -3; d <= 3; d++ {
			sizes = append(sizes, max(0, near+d))
		}
	}
	begin(0)
	for n, size := range sizes {
		content := strings.Repeat("x", max(0, size-2)) + "\r\n"
		if err := c.Body(t.Context(), nil, strings.NewReader(content)); err != nil {
			t.Fatal(err)
		}
		dotThen(t, c, n+1)
		if answer, err := c.Answer(t.Context()); err != nil || !answer.Open {
			t.Fatalf("Answer: %+v %v", answer, err)
		}
		if got := p.Received(); len(got) != n+1 || string(got[n].Octets) != content {
			t.Fatalf("%d octets: altered", size)
		}
		writes := w.written()
		want := fmt.Sprintf(".\r\nMAIL FROM:<s%d@client.test>\r\nRCPT TO:<u%d@example.test>\r\nDATA\r\n", n+1, n+1)
		if last := writes[len(writes)-1]; !strings.HasSuffix(last, want) {
			t.Errorf("%d octets: last write ends %q", size, last[max(0, len(last)-100):])
		}
	}
}

func TestPipelinedRepliesOneOctetAtATime(t *testing.T) {
	for _, cut := range []func(net.Conn) net.Conn{
		func(nc net.Conn) net.Conn { return nc },
		func(nc net.Conn) net.Conn { return oneOctet{nc} },
	} {
		p := &deliverytest.Primary{Extensions: allExtensions, TLS: certificate(t)}
		p.Answer = func(stage, _ string) string {
			switch stage {
			case deliverytest.Dot:
				return "250-2.0.0 taken\r\n250 2.0.0 and queued"
			case deliverytest.Mail:
				return "250-2.1.0 fine\r\n250-2.1.0 with\r\n250 2.1.0 me"
			}
			return ""
		}
		c, err := Open(t.Context(), cut(serve(p)), Options{Hello: "node.test"})
		if err != nil {
			t.Fatal(err)
		}
		sendAll(t, c, 5)
		received(t, p, 5)
		if err := c.Quit(t.Context()); err != nil || c.PipeliningFailed() {
			t.Error(err, c.PipeliningFailed())
		}
		if c = open(t, p); c.TLS() == nil {
			t.Fatal("no TLS")
		}
		begin(t, c, 5)
		dotThen(t, c, 6)
		answered(t, c, 6)
		dotOf(t, c, 6)
		received(t, p, 7)
	}
}

// More recipients than one group holds: the rest goes out when the first are
// answered.
func TestPipelinedThousandRecipients(t *testing.T) {
	var to []string
	for i := range 1000 {
		to = append(to, fmt.Sprintf("u%d@example.test", i))
	}
	p := &deliverytest.Primary{Extensions: allExtensions}
	w := &wire{Conn: serve(p)}
	c, err := Open(t.Context(), w, Options{Hello: "node.test"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Abort()
	begin(t, c, 0)
	if _, begun, err := c.DotAndBegin(t.Context(), numbered(t, 1, to...)); !begun || err != nil {
		t.Fatal(begun, err)
	}
	answered(t, c, 1)
	dotOf(t, c, 1)
	received(t, p, 2)
	if n := len(p.Received()[1].To); n != 1000 {
		t.Errorf("%d recipients", n)
	}
	for _, b := range w.written() {
		if n := strings.Count(b, "RCPT TO:"); n > groupMax {
			t.Errorf("%d commands in one write", n)
		}
	}
}

// What cannot be said is not begun, and costs the dot nothing.
func TestNextThatCannotBeSaid(t *testing.T) {
	p := &deliverytest.Primary{Extensions: []string{"PIPELINING"}}
	c := open(t, p)
	begin(t, c, 0)
	next := numbered(t, 1)
	next.SMTPUTF8 = true
	if reply, begun, err := c.DotAndBegin(t.Context(), next); begun || err != nil || reply.Code != 250 {
		t.Fatal(reply, begun, err)
	}
	if _, err := c.Begin(t.Context(), next); !errors.Is(err, ErrSMTPUTF8) {
		t.Fatal(err)
	}
	begin(t, c, 1)
	dotOf(t, c, 1)
	received(t, p, 2)
}

// only answers one command of message n.
func only(n int, stage, answer string) func(string, string) string {
	return func(at, line string) string {
		if at == stage && (strings.Contains(line, fmt.Sprintf("<s%d@", n)) || strings.Contains(line, fmt.Sprintf("<u%d@", n))) {
			return answer
		}
		return ""
	}
}

// A refusal of the next message touches neither the one before nor those behind,
// and is believed. On a connection that has not shown that it pipelines it is
// asked for again: what was refused may not have been what was sent.
func TestPipelinedRefusals(t *testing.T) {
	for _, proven := range []bool{true, false} {
		for _, stage := range []string{deliverytest.Mail, deliverytest.Rcpt} {
			for _, code := range []string{"451 4.3.0 no", "550 5.1.1 no"} {
				p := &deliverytest.Primary{Extensions: allExtensions}
				c := open(t, p)
				begin(t, c, 0)
				n := 1
				if proven {
					dotThen(t, c, 1)
					answered(t, c, 1)
					n = 2
				}
				p.SetAnswer(only(n, stage, code))
				dotThen(t, c, n)
				answer, err := c.Answer(t.Context())
				if err != nil || answer.Open {
					t.Fatalf("%s %s: %+v %v", stage, code, answer, err)
				}
				said := answer.Mail
				if stage == deliverytest.Rcpt {
					said = answer.Recipients[0]
				}
				if said.String() != code {
					t.Errorf("%s %s: said %v", stage, code, said)
				}
				times := 0
				for _, line := range p.Lines() {
					if strings.Contains(line, fmt.Sprintf("<s%d@", n)) {
						times++
					}
				}
				if proven != (times == 1) || times > 2 {
					t.Errorf("%s %s: asked %d times", stage, code, times)
				}
				p.SetAnswer(nil)
				if !c.Usable() || c.PipeliningFailed() {
					t.Fatalf("%s %s: connection is gone", stage, code)
				}
				begin(t, c, n) // RSET comes before it.
				dotThen(t, c, n+1)
				answered(t, c, n+1)
				dotOf(t, c, n+1)
				received(t, p, n+2)
			}
		}
	}
}

// A peer whose first refusal was a misunderstanding.
func TestPipelinedRefusalIsAskedAgain(t *testing.T) {
	p := &deliverytest.Primary{Extensions: allExtensions}
	c := open(t, p)
	begin(t, c, 0)
	once := true
	p.SetAnswer(func(stage, _ string) string {
		if stage == deliverytest.Rcpt && once {
			once = false
			return "550 5.1.1 who?"
		}
		return ""
	})
	dotThen(t, c, 1)
	answered(t, c, 1)
	dotOf(t, c, 1)
	received(t, p, 2)
}

func TestPipelinedRecipientsAreJudgedOneByOne(t *testing.T) {
	p := &deliverytest.Primary{Extensions: allExtensions}
	p.Answer = func(stage, line string) string {
		if stage == deliverytest.Rcpt && strings.Contains(line, "no@") {
			return "550 5.1.1 nobody"
		}
		return ""
	}
	c := open(t, p)
	begin(t, c, 0)
	if _, begun, err := c.DotAndBegin(t.Context(), numbered(t, 1, "a@example.test", "no@example.test", "b@example.test")); !begun || err != nil {
		t.Fatal(begun, err)
	}
	answer, err := c.Answer(t.Context())
	if err != nil || !answer.Open || answer.Recipients[0].Code != 250 || answer.Recipients[1].Code != 550 || answer.Recipients[2].Code != 250 {
		t.Fatalf("%+v %v", answer, err)
	}
	body(t, c, 1)
	dotOf(t, c, 1)
	received(t, p, 2)
	if to := p.Received()[1].To; len(to) != 2 {
		t.Errorf("%q", to)
	}
}

// The dot of one message is refused: it changes nothing for the next.
func TestPipelinedBehindARefusedDot(t *testing.T) {
	for _, code := range []string{"451 4.3.0 later", "554 5.7.1 spam"} {
		p := &deliverytest.Primary{Extensions: allExtensions, Answer: func(stage, _ string) string {
			if stage == deliverytest.Dot {
				return code
			}
			return ""
		}}
		c := open(t, p)
		begin(t, c, 0)
		reply, begun, err := c.DotAndBegin(t.Context(), numbered(t, 1))
		if err != nil || !begun || reply.String() != code {
			t.Fatal(reply, begun, err)
		}
		p.SetAnswer(nil)
		answered(t, c, 1)
		dotOf(t, c, 1)
		received(t, p, 2)
		if r := p.Received(); r[0].Reply != code {
			t.Errorf("%q", r[0].Reply)
		}
	}
}

// RFC 2920 section 3.1: 354 although MAIL or every RCPT was refused. No content,
// and no dot, follows: the replies may be those to other commands.
func TestPipelinedDataWithoutRecipients(t *testing.T) {
	for _, stage := range []string{deliverytest.Mail, deliverytest.Rcpt} {
		p := &deliverytest.Primary{Extensions: allExtensions}
		p.Answer = func(at, line string) string {
			switch {
			case at == deliverytest.Data:
				return "354 whatever you say"
			case at == deliverytest.Rcpt && stage == deliverytest.Mail:
				return "250 2.1.5 whoever it is"
			}
			return only(1, stage, "550 5.1.1 no")(at, line)
		}
		c := open(t, p)
		begin(t, c, 0)
		dotThen(t, c, 1)
		answer, err := c.Answer(t.Context())
		if err == nil || answer.Open || c.Usable() {
			t.Fatalf("%s: %+v %v", stage, answer, err)
		}
		if _, err := c.Dot(t.Context()); err == nil || errors.Is(err, ErrNoReply) {
			t.Errorf("%s: a dot: %v", stage, err)
		}
		received(t, p, 1)
	}
}

// Behind a 354 that is not used there is nothing but the end of the connection.
func TestPipelinedAndGivenUp(t *testing.T) {
	corrupt := errors.New("corrupt")
	for name, giveUp := range map[string]func(t *testing.T, c *Conn){
		"abort":        func(t *testing.T, c *Conn) { c.Abort() },
		"quit":         func(t *testing.T, c *Conn) { _ = c.Quit(t.Context()) },
		"answer, quit": func(t *testing.T, c *Conn) { _, _ = c.Answer(t.Context()); _ = c.Quit(t.Context()) },
		"another": func(t *testing.T, c *Conn) {
			if _, err := c.Begin(t.Context(), numbered(t, 2)); !errors.Is(err, ErrClosed) {
				t.Errorf("Begin: %v", err)
			}
		},
		"content first": func(t *testing.T, c *Conn) {
			if err := c.Body(t.Context(), nil, strings.NewReader("x\r\n")); !errors.Is(err, ErrClosed) {
				t.Errorf("Body: %v", err)
			}
		},
		"dot first": func(t *testing.T, c *Conn) {
			if _, err := c.Dot(t.Context()); !errors.Is(err, ErrClosed) {
				t.Errorf("Dot: %v", err)
			}
		},
		"content unreadable": func(t *testing.T, c *Conn) {
			_, _ = c.Answer(t.Context())
			err := c.Body(t.Context(), nil, io.MultiReader(strings.NewReader("half\r\n"), failing{corrupt}))
			if !errors.Is(err, ErrSource) {
				t.Errorf("Body: %v", err)
			}
		},
		"context": func(t *testing.T, c *Conn) {
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if _, err := c.Answer(ctx); err == nil {
				_, err = c.Dot(ctx)
				t.Errorf("Answer went on: %v", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &deliverytest.Primary{Extensions: allExtensions}
				if name == "context" {
					p.Answer = only(1, deliverytest.Rcpt, deliverytest.Hang)
				}
				c := open(t, p)
				begin(t, c, 0)
				dotThen(t, c, 1)
				giveUp(t, c)
				if c.Usable() || c.PipeliningFailed() {
					t.Errorf("usable %v, pipelining failed %v", c.Usable(), c.PipeliningFailed())
				}
				if _, err := c.Dot(t.Context()); err == nil || errors.Is(err, ErrNoReply) {
					t.Errorf("a dot: %v", err)
				}
				synctest.Wait()
				received(t, p, 1)
				for _, line := range p.Lines() {
					if line == "QUIT" {
						t.Error("QUIT went out")
					}
				}
			})
		})
	}
}

// A 421 in answer to the dot is the dot's reply, and the next was not tried.
func TestPipelinedBehindADotThatGot421(t *testing.T) {
	p := &deliverytest.Primary{Extensions: allExtensions, Answer: func(stage, _ string) string {
		if stage == deliverytest.Dot {
			return "421 4.3.2 going down"
		}
		return ""
	}}
	c := open(t, p)
	begin(t, c, 0)
	reply, begun, err := c.DotAndBegin(t.Context(), numbered(t, 1))
	if err != nil || begun || reply.Code != 421 || c.Usable() {
		t.Fatal(reply, begun, err)
	}
	if _, err := c.Answer(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Answer: %v", err)
	}
	received(t, p, 1)
}

// The connection is lost behind a dot: with its reply unread there is doubt about
// one message, with it read about none, and never about the next.
func TestPipelinedConnectionLost(t *testing.T) {
	for _, stage := range []string{deliverytest.Dot, deliverytest.Mail, deliverytest.Rcpt, deliverytest.Data} {
		for _, how := range []string{deliverytest.Drop, deliverytest.Hang, "garbage"} {
			t.Run(stage+" "+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					p := &deliverytest.Primary{Extensions: allExtensions}
					c := open(t, p)
					begin(t, c, 0)
					p.SetAnswer(func(at, _ string) string {
						if at == stage {
							return how
						}
						return ""
					})
					start := time.Now()
					reply, begun, err := c.DotAndBegin(t.Context(), numbered(t, 1))
					if stage == deliverytest.Dot {
						if !errors.Is(err, ErrNoReply) || begun {
							t.Fatal(reply, begun, err)
						}
					} else {
						if err != nil || !begun || reply.Code != 250 {
							t.Fatal(reply, begun, err)
						}
						if _, err = c.Answer(t.Context()); err == nil || errors.Is(err, ErrNoReply) {
							t.Fatal(err)
						}
						if took := time.Since(start); took > PipelinedTimeout {
							t.Errorf("took %v", took)
						}
					}
					if c.Usable() || !c.PipeliningFailed() {
						t.Errorf("usable %v, pipelining failed %v", c.Usable(), c.PipeliningFailed())
					}
					received(t, p, 1)
				})
			})
		}
	}
}

// What a peer's end means for pipelining once it has been seen to work.
func TestPipeliningFailed(t *testing.T) {
	for _, row := range []struct {
		stage, how string
		failed     bool
	}{
		{deliverytest.Dot, deliverytest.Drop, false},
		{deliverytest.Dot, "421 4.3.2 going down", false},
		{deliverytest.Mail, "421 4.7.0 enough for one connection", false},
		{deliverytest.Mail, deliverytest.Drop, false},
		{deliverytest.Mail, "451 4.3.0 later", false},
		{deliverytest.Mail, deliverytest.Hang, true},
		{deliverytest.Data, deliverytest.Hang, true},
		{deliverytest.Mail, "503 5.5.1 nested MAIL", true},
		{deliverytest.Mail, "500 5.5.2 what?", true},
		{deliverytest.Rcpt, "503 5.5.1 MAIL first", true},
		{deliverytest.Data, "502 5.5.1 what?", true},
		{deliverytest.Mail, "250 fine\r\n250 fine", true},
		{deliverytest.Rcpt, "550 5.5.0 mailbox unavailable", false},
		{deliverytest.Data, "554 5.5.0 Error: SMTP protocol synchronization", true},
		{deliverytest.Dot, "554 5.5.0 Error: SMTP protocol synchronization", true},
		{deliverytest.Dot, "503 5.5.1 what?", true},
		{deliverytest.Dot, "554 5.7.1 spam", false},
	} {
		t.Run(row.stage+" "+row.how, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &deliverytest.Primary{Extensions: allExtensions}
				c := open(t, p)
				begin(t, c, 0)
				dotThen(t, c, 1)
				answered(t, c, 1)
				p.SetAnswer(func(at, _ string) string {
					if at == row.stage {
						return row.how
					}
					return ""
				})
				_, begun, _ := c.DotAndBegin(t.Context(), numbered(t, 2))
				if begun {
					_, _ = c.Answer(t.Context())
				}
				if c.PipeliningFailed() != row.failed {
					t.Errorf("failed %v", !row.failed)
				}
				if row.failed && c.Usable() {
					t.Error("goes on")
				}
				received(t, p, 2)
			})
		})
	}
}

// Peers, and firewalls before them, that cannot take a command behind a dot.
func TestPeersBrokenBehindADot(t *testing.T) {
	for _, row := range []struct {
		name, stage, answer string
		dotAlone            bool
		copies              int
	}{
		{"what is behind the dot is lost", deliverytest.Dot, deliverytest.Forget, false, 1},
		{"what is behind MAIL is lost", deliverytest.Mail, deliverytest.Forget, false, 1},
		{"what is behind RCPT is lost", deliverytest.Rcpt, deliverytest.Forget, false, 1},
		{"the dot is not seen", "", "", true, 0},
		{"the dot is answered twice", deliverytest.Dot, "250 2.0.0 taken\r\n250 2.0.0 taken", false, 1},
		{"MAIL is answered twice", deliverytest.Mail, "250 2.1.0 fine\r\n250 2.1.0 fine", false, 1},
		{"354 is followed by more", deliverytest.Data, "354 go on\r\n250 2.0.0 taken", false, 1},
		{"the dot ends the connection", deliverytest.Dot, "250 2.0.0 taken\r\n421 4.3.0 speak when you are asked", false, 1},
	} {
		t.Run(row.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &deliverytest.Primary{Extensions: allExtensions, DotAlone: row.dotAlone}
				c := open(t, p)
				begin(t, c, 0)
				p.SetAnswer(func(stage, _ string) string {
					if stage == row.stage {
						return row.answer
					}
					return ""
				})
				reply, begun, err := c.DotAndBegin(t.Context(), numbered(t, 1))
				if row.dotAlone {
					if !errors.Is(err, ErrNoReply) || begun {
						t.Fatal(reply, begun, err)
					}
				} else {
					if err != nil || !begun || reply.Code != 250 {
						t.Fatal(reply, begun, err)
					}
					if answer, err := c.Answer(t.Context()); err == nil || answer.Open {
						t.Fatalf("%+v %v", answer, err)
					}
				}
				if !c.PipeliningFailed() || c.Usable() {
					t.Error("goes on")
				}
				synctest.Wait()
				received(t, p, row.copies)
			})
		})
	}
}

// The write that has the dot fails: no doubt only where not one octet of it was
// taken.
func TestPipelinedWriteFails(t *testing.T) {
	for _, take := range []int{-8, -1, 0, 1, 2, 3, 10} {
		synctest.Test(t, func(t *testing.T) {
			w := &wire{Conn: serve(&deliverytest.Primary{Extensions: allExtensions}), failAt: "\r\n.\r\n", take: 2 + take}
			c, err := Open(t.Context(), w, Options{Hello: "node.test"})
			if err != nil {
				t.Fatal(err)
			}
			begin(t, c, 0)
			_, begun, err := c.DotAndBegin(t.Context(), numbered(t, 1))
			if err == nil || begun || errors.Is(err, ErrNoReply) != (take > 0) {
				t.Errorf("%d octets of the dot taken: %v %v", take, begun, err)
			}
			if take <= 0 && c.PipeliningFailed() {
				t.Error("nothing was pipelined")
			}
		})
	}
}

// Short messages over one loopback connection, both sides together.
func BenchmarkMessages(b *testing.B) {
	for _, pipelining := range []bool{true, false} {
		b.Run(fmt.Sprintf("pipelining=%v", pipelining), func(b *testing.B) {
			p := &deliverytest.Primary{Extensions: allExtensions}
			listener, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			defer listener.Close()
			go func() {
				if server, err := listener.Accept(); err == nil {
					p.Serve(server)
				}
			}()
			client, err := net.Dial("tcp", listener.Addr().String())
			if err != nil {
				b.Fatal(err)
			}
			c, err := Open(b.Context(), client, Options{Hello: "node.test"})
			if err != nil {
				b.Fatal(err)
			}
			defer c.Abort()
			begun := false
			tx := numbered(b, 0)
			for b.Loop() {
				var answer Answer
				if begun {
					answer, err = c.Answer(b.Context())
				} else {
					answer, err = c.Begin(b.Context(), tx)
				}
				if err != nil || !answer.Open {
					b.Fatal(answer, err)
				}
				if err = c.Body(b.Context(), nil, strings.NewReader(contentOf(0))); err != nil {
					b.Fatal(err)
				}
				if pipelining {
					_, begun, err = c.DotAndBegin(b.Context(), tx)
				} else {
					_, err = c.Dot(b.Context())
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
