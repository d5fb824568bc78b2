package smtpd_test

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/smtpd"
)

// scripted is a connection whose client has sent all it has to say, in reads of
// a given size, and takes every reply.
type scripted struct {
	in   []byte
	size int
	out  bytes.Buffer
	done chan struct{}
}

func (c *scripted) Read(p []byte) (int, error) {
	if len(c.in) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), c.size)], c.in)
	c.in = c.in[n:]
	return n, nil
}

func (c *scripted) Arrived() int                     { return len(c.in) }
func (c *scripted) Write(p []byte) (int, error)      { return c.out.Write(p) }
func (c *scripted) Close() error                     { close(c.done); return nil }
func (c *scripted) LocalAddr() net.Addr              { return pipeAddr("server") }
func (c *scripted) RemoteAddr() net.Addr             { return pipeAddr(someone) }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// FuzzSession sends whatever it is through a whole session. Nothing panics, and
// what is stored has one 250 each, the relay's domains, canonical line ends,
// and does not depend on how the octets were cut into reads.
func FuzzSession(f *testing.F) {
	const head = "EHLO c\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"
	for _, look := range lookAlikes {
		f.Add([]byte(head+"text"+look.sent+smuggled+"\r\n.\r\nQUIT\r\n"), 7)
	}
	f.Add([]byte(head+"one\r\n.\r\nRSET\r\n"+head+"two\r\n.\r\n"), 1)
	f.Add([]byte("HELO c\r\nMAIL FROM:<\"a>\\\"\"@[1.2.3.4]> SIZE=5 RET=FULL ENVID=+20\r\nRCPT TO:<postmaster> NOTIFY=NEVER ORCPT=utf-8;\\x{FC}\r\nDATA\r\n.\r\n"), 3)
	f.Add([]byte("STARTTLS\r\nBDAT 10 LAST\r\n"), 100)
	f.Fuzz(func(t *testing.T, in []byte, size int) {
		if len(in) > 64<<10 {
			t.Skip()
		}
		whole, wholeReplies := play(t, in, 1<<20)
		cut, cutReplies := play(t, in, 1+int(uint(size)%5000))
		if len(whole) != len(cut) {
			t.Fatalf("%d messages in one read, %d in several", len(whole), len(cut))
		}
		for i := range whole {
			if whole[i].body != cut[i].body {
				t.Fatalf("stored %q in one read, %q in several", whole[i].body, cut[i].body)
			}
		}
		if wholeReplies != cutReplies {
			t.Fatalf("said %q in one read, %q in several", wholeReplies, cutReplies)
		}
	})
}

func play(t *testing.T, in []byte, size int) ([]stored, string) {
	q := newFakeQueue()
	conn := &scripted{in: bytes.Clone(in), size: size, done: make(chan struct{})}
	l := newPipeListener()
	s, err := smtpd.New(smtpd.Config{Hostname: hostname, Queue: q})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error)
	go func() { served <- s.Serve(l) }()
	l.conns <- conn
	<-conn.done
	if err := s.Shutdown(context.Background()); err != nil {
		t.Fatal(err)
	}
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	replies := conn.out.String()
	if got, want := strings.Count(replies, "250 2.0.0 queued as"), len(q.messages()); got != want {
		t.Fatalf("%d messages stored, %d answered 250", want, got)
	}
	if s.Stats().Panics.Load() != 0 {
		t.Fatal("a session panicked")
	}
	for _, m := range q.messages() {
		if rest := strings.ReplaceAll(m.body, "\r\n", ""); strings.ContainsAny(rest, "\r\n") {
			t.Fatalf("stored a stray CR or LF: %q", m.body)
		}
		for _, r := range m.envelope.Recipients {
			if r.Domain != "example.test" && r.Domain != "example.org" || strings.ContainsAny(r.Path.String(), "\r\n\x00") {
				t.Fatalf("took mail for %q", r.Path)
			}
		}
	}
	return q.messages(), replies
}
