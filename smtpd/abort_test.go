package smtpd_test

import (
	"context"
	"net"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// ends are the ways in which a client goes away.
var ends = map[string]func(*net.TCPConn){
	"close":      func(c *net.TCPConn) { _ = c.Close() },
	"half-close": func(c *net.TCPConn) { _ = c.CloseWrite() },
	"reset":      func(c *net.TCPConn) { _ = c.SetLinger(0); _ = c.Close() },
}

// TestTruncatedSession ends a session behind each of its octets: only the end
// mark makes a message (RFC 5321 section 4.1.1.4). Nothing is stored before the last one.
func TestTruncatedSession(t *testing.T) {
	const session = "EHLO c.example\r\nMAIL FROM:<a@sender.example>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n" +
		"Subject: x\r\n\r\ntext\n..dot\r\n.\r\r\n.\x00\r\n\r\n.\r\n"
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newFakeQueue()
			s, addr := start(t, q, nil)
			for n := range len(session) {
				c := dial(t, addr)
				c.expect("220 ")
				c.send(session[:n])
				end(c.conn.(*net.TCPConn))
				if name == "half-close" {
					for {
						if s := c.reply(); s == "EOF" || strings.HasPrefix(s, "error") {
							break
						} else if strings.HasPrefix(s, "4") || strings.HasPrefix(s, "5") {
							t.Fatalf("after %d octets: %q", n, s)
						}
					}
				}
				_ = c.conn.Close()
			}
			waitGone(t, s)
			if m := q.messages(); len(m) != 0 {
				t.Fatalf("stored %d messages, the first %q", len(m), m[0].body)
			}
			c := dial(t, addr)
			c.expect("220 ")
			c.send(session)
			for _, want := range []string{"250 ", "250 2.1.0", "250 2.1.5", "354 ", "250 2.0.0 queued"} {
				c.expect(want)
			}
		})
	}
}

// TestClientGoneAfterTheDot: once the end mark has come, what is being committed
// is committed, whether the client waits for it or not.
func TestClientGoneAfterTheDot(t *testing.T) {
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := newFakeQueue()
			begun, release := make(chan struct{}), make(chan struct{})
			q.submit = func(ctx context.Context, _ mail.QueueID) error {
				close(begun)
				select {
				case <-release:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			s, addr := start(t, q, nil)
			c := dial(t, addr)
			c.toData()
			c.send("text\r\n.\r\n")
			<-begun
			end(c.conn.(*net.TCPConn))
			close(release)
			if name == "half-close" {
				c.expect("250 2.0.0 queued")
				c.expectSilentEnd()
			}
			_ = c.conn.Close()
			waitGone(t, s)
			if got := q.only(t).body; got != "text\r\n" {
				t.Fatalf("stored %q", got)
			}
			if ids := q.settledIDs(); len(ids) != 0 {
				t.Fatal("the end of a connection was taken for proof of read")
			}
		})
	}
}

// TestTruncatedTLS: close_notify, which looks like a clean end, inside DATA.
func TestTruncatedTLS(t *testing.T) {
	q := newFakeQueue()
	s, addr := start(t, q, withTLS(t))
	for _, body := range []string{"", "text", "text\r\n", "text\r\n.", "text\r\n.\r"} {
		c := dial(t, addr)
		c.expect("220 ")
		c.do("EHLO c.example", "250 ")
		c.startTLS()
		c.do("EHLO c.example", "250 ")
		c.do("MAIL FROM:<>", "250 ")
		c.do("RCPT TO:<b@example.test>", "250 ")
		c.do("DATA", "354 ")
		c.send(body)
		_ = c.conn.Close()
	}
	waitGone(t, s)
	if m := q.messages(); len(m) != 0 {
		t.Fatalf("stored %q", m[0].body)
	}
}
