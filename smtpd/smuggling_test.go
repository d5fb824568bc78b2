package smtpd_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/smtpd"
)

// smuggled is what an attacker puts behind something that looks like an end mark.
const smuggled = "MAIL FROM:<evil@sender.example>\r\nRCPT TO:<victim@example.test>\r\nDATA\r\nSubject: smuggled\r\n"

// lookAlikes are the sequences of CVE-2023-51764 and its kin (RFC 5321 section
// 4.1.1.4: only CRLF.CRLF), each with what is stored for it.
var lookAlikes = []struct{ sent, stored string }{
	{"\n.\n", "\r\n.\r\n"},
	{"\r.\r", " . "},
	{"\r.\n", " .\r\n"},
	{"\n.\r", "\r\n. "},
	{"\n.\r\n", "\r\n.\r\n"},
	{"\r\n.\n", "\r\n\r\n"}, // the dot is taken off, as from any line
	{"\r.\r\n", " .\r\n"},
	{"\r\n.\r", "\r\n "},
	{"\r\n\x00.\r\n", "\r\n\x00.\r\n"},
	{"\r\n.\x00\r\n", "\r\n\x00\r\n"},
	{"\r\n.\rX", "\r\n X"}, // a stray CR behind the dot
	{"\r\n.\r\r\n", "\r\n \r\n"},
}

// fragmented gives out at most size octets per Read.
type fragmented struct {
	net.Listener
	size int
}

type fragmentedConn struct {
	net.Conn
	size int
}

func (l fragmented) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return fragmentedConn{c, l.size}, err
}

func (c fragmentedConn) Read(p []byte) (int, error) { return c.Conn.Read(p[:min(len(p), c.size)]) }

// TestRFC5321EndOfData plays each look-alike in one segment, one octet at a
// time, and across the edges of reads. One message, one reply, exact octets.
func TestRFC5321EndOfData(t *testing.T) {
	for _, size := range []int{1 << 20, 1, 3, 4096} {
		t.Run(fmt.Sprintf("reads of %d", size), func(t *testing.T) {
			t.Parallel()
			inner, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			q := newFakeQueue()
			startOn(t, fragmented{inner, size}, q, nil)
			pads := []int{0}
			if size == 4096 {
				// The commands up to DATA have been read when the body begins, so its
				// edges lie at multiples of 4096 octets.
				for edge := 4096 - 12; edge <= 4096; edge++ {
					pads = append(pads, edge, edge+65536-4096)
				}
			}
			for _, look := range lookAlikes {
				for _, pad := range pads {
					text := strings.Repeat("x", pad)
					check(t, q, inner.Addr().String(), text+look.sent+smuggled, text+look.stored+smuggled)
				}
			}
		})
	}
}

// check sends a body and expects exactly one message of it.
func check(t *testing.T, q *fakeQueue, addr, sent, want string) {
	t.Helper()
	before := len(q.messages())
	c := dial(t, addr)
	c.toData()
	c.send(sent + "\r\n.\r\nQUIT\r\n")
	c.expect("250 2.0.0 queued as")
	c.expect("221 ")
	c.expectSilentEnd()
	m := q.messages()
	if len(m) != before+1 {
		t.Fatalf("%.20q...: %d messages", sent, len(m)-before)
	}
	if got := m[before].body; got != want+"\r\n" {
		t.Fatalf("sent %q\nstored %q\nwant %q", tail(sent), tail(got), tail(want+"\r\n"))
	}
	_ = c.conn.Close()
}

// tail cuts the padding off.
func tail(s string) string { return s[max(0, len(s)-200):] }

// TestStrayCRBeforeTheEndMark: CRLF.CRLF ends the mail whatever stands before it
// (RFC 5321 section 4.1.1.4). go-smtp alone misses this end and swallows the
// commands behind it.
func TestStrayCRBeforeTheEndMark(t *testing.T) {
	for _, size := range []int{1 << 20, 1} {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		q := newFakeQueue()
		startOn(t, fragmented{inner, size}, q, nil)
		c := dial(t, inner.Addr().String())
		c.toData()
		c.send("text\r\r\n.\r\n")
		c.expect("250 2.0.0 queued as")
		if got := q.only(t).body; got != "text \r\n" {
			t.Fatalf("stored %q", got)
		}
	}
}

// TestTwoMessagesInOneSegment: an end mark that is one ends the message.
func TestTwoMessagesInOneSegment(t *testing.T) {
	q := newFakeQueue()
	_, addr := start(t, q, nil)
	c := dial(t, addr)
	c.toData()
	c.send("one\r\n.\r\nMAIL FROM:<>\r\nRCPT TO:<b@example.test>\r\nDATA\r\ntwo\r\n.\r\nQUIT\r\n")
	for _, want := range []string{"250 2.0.0", "250 2.1.0", "250 2.1.5", "354", "250 2.0.0", "221"} {
		c.expect(want)
	}
	if m := q.messages(); len(m) != 2 || m[0].body != "one\r\n" || m[1].body != "two\r\n" {
		t.Fatalf("stored %q", fmt.Sprint(m))
	}
}

// TestBodyLines: lines up to 1 MiB pass as they are, more than RFC 5321 section
// 4.5.3.1.6 asks for.
func TestBodyLines(t *testing.T) {
	q := newFakeQueue()
	_, addr := start(t, q, nil)
	for _, n := range []int{998, 1000, 4096, 5000, 65535, 65536, 1 << 20} {
		line := strings.Repeat("y", n)
		check(t, q, addr, "a\r\n"+line, "a\r\n"+line)
	}
	before := len(q.messages())
	c := dial(t, addr)
	c.toData()
	c.send(strings.Repeat("y", 1<<20+1) + "\r\nmore\r\n.\r\n")
	c.expect("554 5.6.0")
	// The session goes on, and nothing of the body was taken for a command.
	c.do("MAIL FROM:<>", "250 2.1.0")
	if len(q.messages()) != before {
		t.Fatal("stored a message with an overlong line")
	}
}

// TestCommandLines: what is too long or no command is answered (RFC 5321 sections
// 4.5.3.1.4 and 4.3.2).
func TestCommandLines(t *testing.T) {
	_, addr := start(t, newFakeQueue(), nil)
	c := dial(t, addr)
	c.hello()
	long := func(n int) string { return "NOOP " + strings.Repeat("z", n-len("NOOP \r\n")) + "\r\n" }
	for _, n := range []int{512, 2048} {
		c.send(long(n))
		c.expect("250 ")
	}
	for _, n := range []int{2049, 4096, 4097, 100_000} {
		c.send(long(n) + "NOOP\r\n")
		c.expect("500 5.5.2")
		c.expect("250 ")
	}
	c.send(strings.Repeat("z", 2<<20))
	c.expect("421 4.7.0")
}

// TestMessageSize: the limit as announced, declared and found (RFC 1870 section 6).
func TestMessageSize(t *testing.T) {
	const sizeMax = 300_000
	q := newFakeQueue()
	_, addr := start(t, q, func(c *smtpd.Config) { c.MaxMessageSize = sizeMax })
	lines := strings.Repeat(strings.Repeat("m", 98)+"\r\n", sizeMax/100)
	check(t, q, addr, strings.TrimSuffix(lines, "\r\n"), strings.TrimSuffix(lines, "\r\n"))
	if n := len(q.only(t).body); n != sizeMax {
		t.Fatalf("stored %d octets, want %d", n, sizeMax)
	}
	// Stuffed dots do not count (RFC 1870 section 3).
	dots := "." + strings.TrimPrefix(strings.TrimSuffix(lines, "\r\n"), "m")
	check(t, q, addr, "."+dots, dots)
	for _, declared := range []string{"", " SIZE=100"} {
		c := dial(t, addr)
		c.hello()
		c.do("MAIL FROM:<>"+declared, "250 2.1.0")
		c.do("RCPT TO:<b@example.test>", "250 2.1.5")
		c.do("DATA", "354")
		c.send("x" + lines + ".\r\n")
		c.expect("552 5.3.4")
		c.do("NOOP", "250") // The rest was read, not executed.
	}
	if n := len(q.messages()); n != 2 {
		t.Fatalf("%d messages stored", n)
	}
	// What is read of it is bounded: here, twice the limit.
	c := dial(t, addr)
	c.toData()
	go func() {
		for range 10 {
			if _, err := c.conn.Write([]byte(lines)); err != nil {
				return
			}
		}
	}()
	c.expect("552 5.3.4")
	if got := c.line(); got != "EOF" && !strings.HasPrefix(got, "error") {
		t.Fatalf("got %q after the cut", got)
	}
}

// TestReceivedLoop counts Received fields (RFC 5321 section 6.3).
func TestReceivedLoop(t *testing.T) {
	q := newFakeQueue()
	_, addr := start(t, q, nil)
	hop := "Received: from a by b\r\n\tfor <c@example.test>; now\r\n"
	check(t, q, addr, strings.Repeat(hop, 50)+"Subject: x\r\n\r\n"+strings.Repeat(hop, 60)+"end",
		strings.Repeat(hop, 50)+"Subject: x\r\n\r\n"+strings.Repeat(hop, 60)+"end")
	c := dial(t, addr)
	c.toData()
	c.send("Subject: x\r\n" + strings.Repeat(strings.ToUpper(hop[:9])+hop[9:], 51) + "\r\nbody\r\n.\r\n")
	c.expect("554 5.4.6")
	q.only(t)
}

// A message that this cluster has had once may come back, from a primary that
// forwards it; one that comes a third time goes in circles.
//
// It holds this defect: a message that a primary sent back to this cluster went in
// circles until it had more Received fields than any message may have.
func TestRegressionOwnReceivedTwiceIsALoop(t *testing.T) {
	const mark = "(Holdfast 0123456789abcdef)"
	own := "Received: from a by b.test\r\n\t" + mark + " with ESMTP id X; now\r\n"
	other := "Received: from b by c\r\n\t(Holdfast fedcba9876543210) id Y; now\r\n"
	for _, x := range []struct {
		name, content string
		loops         bool
	}{
		{"never", "Subject: x\r\n\r\nbody\r\n", false},
		{"once", own + other + other + "Subject: x\r\n\r\nbody\r\n", false},
		{"twice", own + other + own + "Subject: x\r\n\r\nbody\r\n", true},
		{"twice, and nothing else", own + own, true},
		{"quoted in the body", own + "Subject: x\r\n\r\n" + own + own, false},
		{"in another field", own + "X-Was: x\r\n\t" + mark + "\r\n\r\nbody\r\n", false},
	} {
		t.Run(x.name, func(t *testing.T) {
			q := newFakeQueue()
			_, addr := start(t, q, func(c *smtpd.Config) { c.TraceMark = mark })
			c := dial(t, addr)
			c.toData()
			c.send(x.content + ".\r\n")
			if x.loops {
				c.expect("554 5.4.6")
				return
			}
			c.expect("250 2.0.0")
			q.only(t)
		})
	}
}
