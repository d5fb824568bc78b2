package smtpd_test

import (
	"context"
	"fmt"
	"net"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestProofOfRead: which of the things that a client does after its final dot
// proves that it has read the 250. A command does, if no octet of it had
// reached us when the 250 was written; a pipelined one, FIN and RST do not.
func TestProofOfRead(t *testing.T) {
	cases := []struct {
		name    string
		before  string // sent behind the dot, in the same segment
		during  string // sent while the commit is in progress
		after   string // sent after the 250 was read
		end     string // how the connection then ends; see ends
		settles bool
	}{
		{"QUIT in the segment of the dot", "QUIT\r\n", "", "", "", false},
		{"QUIT while we commit", "", "QUIT\r\n", "", "", false},
		{"QUIT begun before the 250, ended after it", "QU", "", "IT\r\n", "close", false},
		{"the same, and a command after it", "NO", "", "OP\r\nQUIT\r\n", "", true},
		{"pipelined MAIL, then a command", "MAIL FROM:<>\r\n", "", "RSET\r\n", "close", true},
		{"pipelined MAIL only", "MAIL FROM:<>\r\nRCPT TO:<b@example.test>\r\n", "", "", "close", false},
		{"QUIT", "", "", "QUIT\r\n", "", true},
		{"MAIL", "", "", "MAIL FROM:<>\r\n", "close", true},
		{"RSET", "", "", "RSET\r\n", "close", true},
		{"NOOP", "", "", "noop\n", "close", true},
		{"STARTTLS", "", "", "STARTTLS\r\n", "close", true},
		{"half a command", "", "", "QUIT", "close", false},
		{"garbage", "", "", "\x16\x03\x01\r\n", "close", false},
		{"no command", "", "", "XYZZY\r\n", "close", false},
		{"FIN", "", "", "", "close", false},
		{"half-close", "", "", "", "half-close", false},
		{"RST", "", "", "", "reset", false},
	}
	for _, encrypted := range []bool{false, true} {
		for _, test := range cases {
			if encrypted && test.after == "STARTTLS\r\n" {
				continue // Refused, and covered.
			}
			t.Run(fmt.Sprintf("%s, tls %v", test.name, encrypted), func(t *testing.T) {
				t.Parallel()
				q := newFakeQueue()
				begun, release := make(chan struct{}), make(chan struct{})
				q.submit = func(context.Context, mail.QueueID) error {
					close(begun)
					<-release
					return nil
				}
				s, addr := start(t, q, withTLS(t))
				c := dial(t, addr)
				c.hello()
				tcp := c.conn.(*net.TCPConn)
				if encrypted {
					c.startTLS()
					c.do("EHLO c.example", "250 ")
				}
				c.do("MAIL FROM:<>", "250 ")
				c.do("RCPT TO:<b@example.test>", "250 ")
				c.do("DATA", "354 ")
				c.send("text\r\n.\r\n" + test.before)
				<-begun
				if test.during != "" {
					c.send(test.during)
				}
				close(release)
				c.expect("250 2.0.0 queued")
				if test.after != "" {
					c.send(test.after)
				}
				if test.end != "" {
					ends[test.end](tcp)
				}
				// The server has seen all of it when the connection has ended.
				if test.end != "close" && test.end != "reset" {
					for c.reply() != "EOF" {
					}
				}
				if test.settles {
					waitFor(t, "the proof", func() bool { return len(q.settledIDs()) == 1 })
				}
				_ = tcp.Close()
				waitGone(t, s)
				ids := q.settledIDs()
				if got := len(ids) > 0; got != test.settles {
					t.Fatalf("settled %v, want %v", got, test.settles)
				}
				if test.settles && (len(ids) != 1 || ids[0] != q.only(t).id) {
					t.Fatalf("settled %v", ids)
				}
			})
		}
	}
}

// TestProofOfReadOfMany: a client that pipelines its transactions settles each
// when it must have read its 250: here, with the commands that it sends after
// the 354 of the next one.
func TestProofOfReadOfMany(t *testing.T) {
	q := newFakeQueue()
	_, addr := start(t, q, nil)
	c := dial(t, addr)
	c.toData()
	const next = "MAIL FROM:<>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"
	for i := range 5 {
		c.send("text\r\n.\r\n" + next)
		c.expect("250 2.0.0")
		c.expect("250 2.1.0")
		c.expect("250 2.1.5")
		c.expect("354 ")
		if got := len(q.settledIDs()); got != max(0, i) {
			t.Fatalf("after message %d: %d settled", i, got)
		}
	}
}
