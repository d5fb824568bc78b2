package smtpd_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd"
)

const someone = "192.0.2.7:4711"

// TestRFC5321CommandTimeout: five minutes per command, dribbled or not (RFC 5321
// section 4.5.3.2.7).
func TestRFC5321CommandTimeout(t *testing.T) {
	for _, dribble := range []string{"", "NOOP but never ended, an octet at a time"} {
		bubble(t, newFakeQueue(), nil, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
			c := l.connect(t, someone)
			c.hello()
			time.Sleep(299 * time.Second)
			c.do("NOOP", "250 ")
			begin := time.Now()
			dribbled := make(chan struct{})
			go func() {
				defer close(dribbled)
				for _, octet := range dribble {
					time.Sleep(10 * time.Second)
					if _, err := c.conn.Write([]byte(string(octet))); err != nil {
						return
					}
				}
			}()
			c.expect("421 4.4.2 " + hostname)
			if got := time.Since(begin); got != 300*time.Second {
				t.Fatalf("after %v", got)
			}
			c.expectSilentEnd()
			<-dribbled
		})
	}
}

// TestStallInsideDATA: when the deadline of DATA fires (RFC 5321 section
// 4.5.3.2.5), body lines that look like commands are not executed. go-smtp alone
// executes them.
func TestStallInsideDATA(t *testing.T) {
	q := newFakeQueue()
	bubble(t, q, nil, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
		c := l.connect(t, someone)
		c.toData()
		c.send("Subject: x\r\n\r\nhello\r\n")
		begin := time.Now()
		late := make(chan struct{})
		go func() { // Comes when the deadline has fired.
			defer close(late)
			time.Sleep(181 * time.Second)
			_, _ = c.conn.Write([]byte("MAIL FROM:<evil@sender.example>\r\nRCPT TO:<b@example.test>\r\nDATA\r\nsmuggled\r\n.\r\n"))
		}()
		time.Sleep(182 * time.Second) // The 421 waits until somebody reads it.
		c.expect("421 4.4.2")
		if got := time.Since(begin); got != 182*time.Second {
			t.Fatalf("after %v", got)
		}
		c.expectSilentEnd()
		<-late
		if len(q.messages()) != 0 || s.GateStats().Timeouts.Load() != 1 {
			t.Fatal("something was stored")
		}
	})
}

// TestSlowDATA holds the least rate of a body: below 500 octets per second the connection ends,
// above it a message may take for hours.
func TestSlowDATA(t *testing.T) {
	for _, test := range []struct {
		octets int // each second
		reply  string
	}{{490, "421 4.4.2"}, {510, "250 2.0.0"}, {5000, "250 2.0.0"}} {
		q := newFakeQueue()
		bubble(t, q, nil, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
			c := l.connect(t, someone)
			c.toData()
			written := make(chan struct{})
			go func() {
				defer close(written)
				line := []byte(strings.Repeat("s", test.octets-2) + "\r\n")
				for range 3600 {
					if _, err := c.conn.Write(line); err != nil {
						return
					}
					time.Sleep(time.Second)
				}
				_, _ = c.conn.Write([]byte(".\r\n"))
			}()
			c.expect(test.reply)
			if test.reply[0] == '4' {
				c.expectSilentEnd()
			}
			_ = c.conn.Close()
			<-written
			if stored := len(q.messages()) == 1; stored != (test.reply[0] == '2') {
				t.Fatalf("stored %v", stored)
			}
		})
	}
}

// TestHandshakeStall: a TLS handshake has a deadline of its own.
func TestHandshakeStall(t *testing.T) {
	bubble(t, newFakeQueue(), withTLS(t), func(t *testing.T, s *smtpd.Server, l *pipeListener) {
		c := l.connect(t, someone)
		c.hello()
		c.do("STARTTLS", "220 ")
		begin := time.Now()
		c.expectSilentEnd()
		if got := time.Since(begin); got != 30*time.Second {
			t.Fatalf("after %v", got)
		}
	})
}

// TestNoDeadlineBehindTheDot: the outcome may take longer than any deadline of
// the connection, and until it is known nothing is written.
func TestNoDeadlineBehindTheDot(t *testing.T) {
	for _, test := range []struct {
		takes time.Duration
		reply string
	}{{50 * time.Second, "250 2.0.0"}, {61 * time.Second, ""}} {
		q := newFakeQueue()
		q.submit = func(ctx context.Context, _ mail.QueueID) error {
			select {
			case <-time.After(test.takes):
				return nil
			case <-ctx.Done():
				return smtpd.ErrOutcomeUnknown
			}
		}
		change := func(c *smtpd.Config) {
			c.Limits.CommandTimeout, c.Limits.DataTimeout, c.Limits.WriteTimeout = time.Second, time.Second, time.Second
			c.Limits.DataRateWindow = 2 * time.Second
		}
		bubble(t, q, change, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
			c := l.connect(t, someone)
			c.toData()
			c.send("x\r\n.\r\n")
			begin := time.Now()
			if test.reply == "" {
				c.expectSilentEnd()
				if got := time.Since(begin); got != 60*time.Second {
					t.Fatalf("closed after %v, want the commit patience", got)
				}
				return
			}
			c.expect(test.reply)
			if got := time.Since(begin); got != test.takes {
				t.Fatalf("first octet after %v", got)
			}
		})
	}
}

// TestShutdown: idle sessions are told, busy ones finish, and behind the dot
// only the outcome is ever written.
func TestShutdown(t *testing.T) {
	newQueue := func() *fakeQueue {
		q := newFakeQueue()
		q.submit = func(ctx context.Context, _ mail.QueueID) error {
			select {
			case <-time.After(20 * time.Second):
				return nil
			case <-ctx.Done():
				return smtpd.ErrOutcomeUnknown
			}
		}
		return q
	}
	shutdown := func(s *smtpd.Server, patience time.Duration) chan error {
		done := make(chan error, 1)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			done <- s.Shutdown(ctx)
		}()
		return done
	}
	t.Run("idle", func(t *testing.T) {
		bubble(t, newQueue(), nil, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
			greeted, idle := l.connect(t, someone), l.connect(t, someone)
			greeted.expect("220 ")
			idle.hello()
			synctest.Wait()
			done := shutdown(s, time.Minute)
			greeted.expect("421 4.3.2 " + hostname)
			idle.expect("421 4.3.2 " + hostname)
			greeted.expectSilentEnd()
			idle.expectSilentEnd()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("busy", func(t *testing.T) {
		q := newQueue()
		bubble(t, q, nil, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
			c, behind := l.connect(t, someone), l.connect(t, someone)
			c.hello()
			c.do("MAIL FROM:<>", "250 ")
			behind.toData()
			behind.send("x\r\n.\r\n")
			synctest.Wait()
			done := shutdown(s, time.Minute)
			synctest.Wait()
			c.do("RCPT TO:<b@example.test>", "250 ")
			c.do("DATA", "354 ")
			c.send("text\r\n.\r\n")
			behind.expect("250 2.0.0")
			behind.expect("421 4.3.2")
			c.expect("250 2.0.0")
			c.expect("421 4.3.2")
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if len(q.messages()) != 2 {
				t.Fatal("a transaction was cut off")
			}
		})
	})
	t.Run("of a node that can finish nothing", func(t *testing.T) {
		q := newQueue()
		bubble(t, q, nil, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
			idle, begun, inData, behind := l.connect(t, someone), l.connect(t, someone), l.connect(t, someone), l.connect(t, someone)
			idle.hello()
			begun.hello()
			begun.do("MAIL FROM:<>", "250 ")
			inData.toData()
			inData.send("half a message\r\n")
			behind.toData()
			behind.send("x\r\n.\r\n")
			synctest.Wait()
			q.setReady(errors.New("the disk failed"))
			done := shutdown(s, time.Minute)
			for _, c := range []*client{idle, begun, inData} {
				c.expect("421 4.3.2 " + hostname)
				c.expectSilentEnd()
			}
			behind.expect("250 2.0.0") // the outcome, whatever it is
			behind.expect("421 4.3.2")
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("behind the dot", func(t *testing.T) {
		bubble(t, newQueue(), nil, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
			c, inData := l.connect(t, someone), l.connect(t, someone)
			c.toData()
			inData.toData()
			c.send("x\r\n.\r\n")
			synctest.Wait()
			begin := time.Now()
			done := shutdown(s, 5*time.Second)
			c.expectSilentEnd()
			inData.expectSilentEnd()
			if err := <-done; err == nil || time.Since(begin) != 5*time.Second {
				t.Fatalf("Shutdown: %v after %v", err, time.Since(begin))
			}
			if s.Stats().AcceptUnknown.Load() != 1 {
				t.Fatal("not counted")
			}
		})
	})
}

// TestConnectionLimits: connections are bounded per address, per /64, and in all.
func TestConnectionLimits(t *testing.T) {
	change := func(c *smtpd.Config) {
		c.Limits.ConnectionsPerClient, c.Limits.ConnectionsMax = 2, 6
		c.ExemptNetworks = prefixes("198.51.100.0/24")
	}
	bubble(t, newFakeQueue(), change, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
		first := l.connect(t, "192.0.2.1:1")
		first.expect("220 ")
		l.connect(t, "192.0.2.1:2").expect("220 ")
		l.connect(t, "192.0.2.1:3").expect("421 4.7.0 " + hostname)
		l.connect(t, "[2001:db8::1]:1").expect("220 ")
		l.connect(t, "[2001:db8::2:0:0:1]:1").expect("220 ")
		l.connect(t, "[2001:db8::3]:1").expect("421 4.7.0")
		_ = first.conn.Close()
		synctest.Wait()
		l.connect(t, "[::ffff:192.0.2.1]:4").expect("220 ")
		// Exempt from the limit per client, not from the one in all.
		l.connect(t, "198.51.100.1:1").expect("220 ")
		l.connect(t, "127.0.0.1:1").expect("220 ")
		l.connect(t, "198.51.100.1:2").expect("421 4.7.0")
		if n := s.GateStats().Connections.Load(); n != 6 {
			t.Fatalf("%d connections", n)
		}
		if n := s.GateStats().Crowded.Load(); n != 3 {
			t.Fatalf("%d refused", n)
		}
	})
}

// TestFloodOverTheLimit: who is over a limit is told so, but not any number of
// them at a time, since each keeps a descriptor until the farewell is over.
func TestFloodOverTheLimit(t *testing.T) {
	const flood, told = 200, 64
	change := func(c *smtpd.Config) { c.Limits.ConnectionsMax = 1 }
	bubble(t, newFakeQueue(), change, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
		first := l.connect(t, "192.0.2.1:1")
		first.expect("220 ")
		var all []*client
		for range flood {
			all = append(all, l.connect(t, "192.0.2.2:1"))
		}
		synctest.Wait()
		answered := 0
		for _, c := range all {
			if line, err := c.r.ReadString('\n'); err == nil && strings.HasPrefix(line, "421 ") {
				answered++
			}
		}
		if answered != told {
			t.Errorf("%d of %d were told", answered, flood)
		}
		if n := s.GateStats().Crowded.Load(); n != flood {
			t.Errorf("%d counted", n)
		}
		time.Sleep(time.Minute) // the farewells end
		l.connect(t, "192.0.2.2:2").expect("421 ")
		first.do("NOOP", "250 ")
	})
}

// TestErrorLimits: errors of one connection, and commands that bring no mail
// forward, are bounded.
func TestErrorLimits(t *testing.T) {
	bubble(t, newFakeQueue(), nil, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
		c := l.connect(t, someone)
		c.hello()
		for range 20 {
			c.do("FOO", "500 ")
		}
		c.do("NOOP", "421 4.7.0 "+hostname)
		c.expectSilentEnd()
		c = l.connect(t, someone)
		c.hello() // One of the hundred.
		for range 99 {
			c.do("NOOP", "250 ")
		}
		c.do("NOOP", "421 4.7.0")
		c.expectSilentEnd()
	})
}

// TestBytesInFlight: memory is reserved before a body is taken in, waits are
// bounded, and the answer is 452, before the body where SIZE said enough.
func TestBytesInFlight(t *testing.T) {
	q := newFakeQueue()
	release := make(chan struct{})
	q.submit = func(context.Context, mail.QueueID) error { <-release; return nil }
	change := func(c *smtpd.Config) { c.MaxMessageSize, c.BytesInFlight = 1<<20, 1<<20 }
	bubble(t, q, change, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
		release = make(chan struct{})
		large := l.connect(t, someone)
		large.hello()
		large.do("MAIL FROM:<> SIZE=900000", "250 ")
		large.do("RCPT TO:<b@example.test>", "250 ")
		large.do("DATA", "354 ")
		large.send("x\r\n.\r\n")
		synctest.Wait()
		// No room for this one: refused before a body is sent.
		second := l.connect(t, someone)
		second.hello()
		second.do("MAIL FROM:<> SIZE=500000", "250 ")
		second.do("RCPT TO:<b@example.test>", "250 ")
		begin := time.Now()
		second.do("DATA", "452 4.3.1")
		if got := time.Since(begin); got != 30*time.Second {
			t.Fatalf("after %v", got)
		}
		second.do("NOOP", "250 ")
		// Without SIZE a body grows until there is no room; the rest is thrown away.
		third := l.connect(t, someone)
		third.hello()
		third.do("MAIL FROM:<>", "250 ")
		third.do("RCPT TO:<b@example.test>", "250 ")
		third.send("DATA\r\n")
		go func() {
			time.Sleep(10 * time.Second)
			close(release)
		}()
		third.expect("354 ")
		if got := len(q.messages()); got != 1 {
			t.Fatalf("the body was wanted before there was room: %d", got)
		}
		third.send("y\r\n.\r\n")
		third.expect("250 ")
		if s.Stats().MemoryRefused.Load() != 1 {
			t.Fatal("not counted")
		}
	})
}

// TestPatientDataIsNotBlamed: the time that a body waits for memory is ours,
// not the sender's.
func TestPatientDataIsNotBlamed(t *testing.T) {
	q := newFakeQueue()
	change := func(c *smtpd.Config) {
		c.MaxMessageSize, c.BytesInFlight = 1<<20, 1<<20
		c.Limits.DataRateWindow, c.MemoryPatience = 3*time.Second, 30*time.Second
	}
	bubble(t, q, change, func(t *testing.T, s *smtpd.Server, l *pipeListener) {
		block := l.connect(t, someone)
		block.hello()
		block.do("MAIL FROM:<> SIZE=800000", "250 ")
		block.do("RCPT TO:<b@example.test>", "250 ")
		block.do("DATA", "354 ")
		c := l.connect(t, someone)
		c.toData()
		go func() {
			time.Sleep(2 * time.Second)
			_, _ = block.conn.Write([]byte(".\r\n"))
		}()
		go func() { _, _ = c.conn.Write([]byte(strings.Repeat("a line\r\n", 100_000) + ".\r\n")) }()
		block.expect("250 ")
		c.expect("250 ")
	})
}

func prefixes(all ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range all {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}
