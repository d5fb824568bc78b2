package ondemand

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestRFC2645 is the ordinary story: the caller proves who it is, says ATRN, and is the
// server then.
func TestRFC2645(t *testing.T) {
	m := &fakeMail{}
	s, addr := start(t, m, nil)
	c := dial(t, addr)
	c.secure()
	c.do("AUTH PLAIN "+plain("", "joe", "correct horse"), "235 2.7.0")
	c.do("ATRN Example.TEST", "250 2.0.0 OK now reversing the connection")
	c.send("220 primary.test ready to receive email\r\n")
	c.expect("QUIT")
	if got := c.reply(); got != "EOF" {
		t.Errorf("after QUIT: %q", got)
	}
	waitFor(t, "the end of the session", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.sessions)+len(s.called) == 0 })
	if got := m.calls(); len(got) != 1 || !slices.Equal(got[0], []mail.Domain{"example.test"}) || !strings.HasPrefix(m.said, "220 primary.test") {
		t.Errorf("%v, %q", got, m.said)
	}
	if s.Stats().Calls.Load() != 1 || s.Stats().AuthFailed.Load() != 0 {
		t.Error("not counted")
	}
}

// TestDialogue is every command where it may stand and where it may not.
func TestDialogue(t *testing.T) {
	key, hash := certificate(t)
	other, _ := certificate(t)
	authenticated := "AUTH PLAIN " + plain("", "joe", "correct horse")
	type step struct{ say, want string }
	for name, test := range map[string]struct {
		clear  bool // no TLS
		show   []tls.Certificate
		broken error
		steps  []step
		turned []mail.Domain
		failed uint64 // authentications
	}{
		"before TLS": {clear: true, steps: []step{
			{"ATRN example.test", "530 5.7.0 Must issue a STARTTLS"}, {authenticated, "538 5.7.11"}, {"STARTTLS", "503 5.5.1"},
			{"EHLO", "501 5.5.4"}, {"EHLO primary.test", "250 STARTTLS"}, {"ATRN", "530 5.7.0"}, {authenticated, "538 "}, {"STARTTLS now", "501 5.5.4"},
			{"NOOP", "250 2.0.0"}, {"RSET", "250 2.0.0"}, {"RSET now", "501 "}, {"QUIT", "221 2.0.0"}, {"", "EOF"},
		}},
		"what is not here": {clear: true, steps: []step{
			{"HELO primary.test", "502 5.5.1"}, {"MAIL FROM:<a@b.test>", "502 "}, {"DATA", "502 "}, {"ETRN example.test", "502 "}, {"TURN", "502 "}, {"XYZZY", "500 5.5.2"},
			{"", "500 "}, {"NO\x00OP", "501 5.5.2"}, {"GET / HTTP/1.1", "502 "}, {"", "EOF"},
		}},
		"ATRN before AUTH": {steps: []step{{"STARTTLS", "503 5.5.1 TLS"}, {"ATRN example.test", "530 5.7.0 Authentication required"}, {authenticated, "235 "}, {authenticated, "503 5.5.1"}}},
		"malformed AUTH": {failed: 1, steps: []step{
			{"AUTH", "501 5.5.4"}, {"AUTH CRAM-MD5", "504 5.5.4"}, {"AUTH EXTERNAL =", "504 5.5.4"}, {"AUTH PLAIN !", "501 5.5.2"},
			{"AUTH PLAIN", "334 "}, {"*", "501 5.7.0"}, {"AUTH PLAIN", "334 "}, {"?", "501 5.5.2"},
			{"AUTH PLAIN " + base64.StdEncoding.EncodeToString([]byte("joe")), "535 5.7.8"}, {"AUTH plain", "334 "}, {plain("joe", "joe", "correct horse"), "235 "},
		}},
		"wrong": {failed: 3, steps: []step{
			{"AUTH PLAIN " + plain("", "joe", "wrong"), "535 5.7.8"}, {"ATRN", "530 "}, {"AUTH PLAIN =", "535 "}, {"AUTH PLAIN " + plain("root", "joe", "correct horse"), "535 "}, {"", "EOF"},
		}},
		"no user":            {failed: 1, steps: []step{{"AUTH PLAIN " + plain("", "", ""), "535 "}, {"ATRN", "530 "}}},
		"cannot be told":     {broken: errors.New("no leader"), steps: []step{{authenticated, "454 4.7.0"}, {"ATRN", "530 "}}},
		"all domains":        {steps: []step{{authenticated, "235 "}, {"ATRN", "250 2.0.0"}}, turned: []mail.Domain{"example.org", "example.test"}},
		"some domains":       {steps: []step{{authenticated, "235 "}, {"ATRN example.test, example.org,example.test", "250 2.0.0"}}, turned: []mail.Domain{"example.test", "example.org"}},
		"a domain of others": {steps: []step{{authenticated, "235 "}, {"ATRN example.test,other.test", "450 4.7.1"}, {"ATRN other.test", "450 "}}},
		"no domain":          {steps: []step{{authenticated, "235 "}, {"ATRN exa_mple..test", "501 5.5.4"}, {"ATRN ,", "501 "}, {"ATRN " + strings.Repeat("a.test,", 30) + "?", "501 "}}},
		"no mail":            {steps: []step{{authenticated, "235 "}, {"ATRN empty.test", "453 4.0.0 You have no mail"}, {"NOOP", "250 "}}},
		"by key":             {show: []tls.Certificate{key}, steps: []step{{"AUTH EXTERNAL =", "235 "}, {"ATRN example.org", "450 "}, {"ATRN", "250 "}}, turned: []mail.Domain{"example.test"}},
		"by key, asked":      {show: []tls.Certificate{key}, steps: []step{{"AUTH EXTERNAL", "334 "}, {"=", "235 "}}},
		"by another's key":   {show: []tls.Certificate{other}, failed: 1, steps: []step{{"AUTH EXTERNAL =", "535 5.7.8"}, {"ATRN", "530 "}, {authenticated, "235 "}}},
		"by key, as another": {show: []tls.Certificate{key}, failed: 1, steps: []step{{"AUTH EXTERNAL " + base64.StdEncoding.EncodeToString([]byte("joe")), "535 "}, {"ATRN", "530 "}}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := &fakeMail{key: hash, broken: test.broken}
			s, addr := start(t, m, nil)
			c := dial(t, addr)
			if test.clear {
				c.expect("220 " + hostname)
			} else {
				c.secure(test.show...)
			}
			for _, one := range test.steps {
				switch {
				case one.want == "EOF":
					c.expect("EOF")
				default:
					c.do(one.say, one.want)
				}
			}
			if test.turned != nil {
				c.send("220 primary.test\r\n")
				c.expect("QUIT")
			}
			calls := m.calls()
			if test.turned == nil && len(calls) > 0 || test.turned != nil && (len(calls) != 1 || !slices.Equal(calls[0], test.turned)) {
				t.Errorf("called for %v, want %v", calls, test.turned)
			}
			if n := s.Stats().AuthFailed.Load(); n != test.failed {
				t.Errorf("%d authentications failed, want %d", n, test.failed)
			}
		})
	}
}

// TestATRNLater: 451 where it cannot be done now, and the dialogue goes on.
func TestATRNLater(t *testing.T) {
	m := &fakeMail{}
	_, addr := start(t, m, nil)
	c := dial(t, addr)
	c.secure()
	c.do("AUTH PLAIN "+plain("", "joe", "correct horse"), "235 ")
	m.mu.Lock()
	m.broken = errors.New("no leader")
	m.mu.Unlock()
	c.do("ATRN", "451 4.3.0")
	m.mu.Lock()
	m.broken = nil
	m.mu.Unlock()
	c.do("ATRN", "250 ")
}

// TestNothingFollowsATRN: what a caller sends behind ATRN, before it has read our answer,
// is neither a command nor its first word as a server.
func TestNothingFollowsATRN(t *testing.T) {
	for _, behind := range []string{"220 primary.test\r\n", "NOOP\r\n", "\x00", "220 primary.test\r\n250 ok\r\n"} {
		m := &fakeMail{}
		_, addr := start(t, m, nil)
		c := dial(t, addr)
		c.secure()
		c.do("AUTH PLAIN "+plain("", "joe", "correct horse"), "235 ")
		c.send("ATRN\r\n" + behind)
		c.expect("554 5.5.0")
		c.expect("EOF")
		if len(m.calls()) > 0 {
			t.Errorf("%q: turned", behind)
		}
	}
}

// TestNothingFollowsSTARTTLS: commands behind it came in the clear (RFC 3207).
func TestNothingFollowsSTARTTLS(t *testing.T) {
	_, addr := start(t, &fakeMail{}, nil)
	c := dial(t, addr)
	c.expect("220 ")
	c.do("EHLO primary.test", "250 ")
	c.send("STARTTLS\r\nEHLO primary.test\r\n")
	c.expect("554 5.5.0")
	c.expect("EOF")
}

// TestOneCallAtATime: while the mail of a domain goes over one connection, another is
// told to come later.
func TestOneCallAtATime(t *testing.T) {
	m := &fakeMail{deliver: make(chan struct{})}
	_, addr := start(t, m, nil)
	first, second := dial(t, addr), dial(t, addr)
	for _, c := range []*caller{first, second} {
		c.secure()
		c.do("AUTH PLAIN "+plain("", "joe", "correct horse"), "235 ")
	}
	first.do("ATRN example.test", "250 ")
	waitFor(t, "the call", func() bool { return len(m.calls()) == 1 })
	second.do("ATRN", "450 4.5.0")
	second.do("ATRN example.test", "450 4.5.0")
	second.do("ATRN empty.test", "453 ")
	close(m.deliver)
	first.send("220 primary.test\r\n")
	first.expect("QUIT")
	first.expect("EOF")
	waitFor(t, "the domain to be free", func() bool {
		second.send("ATRN example.test\r\n")
		return strings.HasPrefix(second.reply(), "250 ")
	})
}

// TestFailedAuthentications: three end a connection, ten bar a client for a while, whose
// passwords are then not even looked at.
func TestFailedAuthentications(t *testing.T) {
	m := &fakeMail{}
	now := time.Unix(1_700_000_000, 0)
	var s *Server
	clock := make(chan time.Time, 1)
	clock <- now
	s, addr := start(t, m, func(c *Config) {
		c.Now = func() time.Time { at := <-clock; clock <- at; return at }
	})
	failed := 0
	for failed < failuresMax {
		c := dial(t, addr)
		c.secure()
		for range min(wrongMax, failuresMax-failed) {
			c.do("AUTH PLAIN "+plain("", "joe", "wrong"), "535 ")
			failed++
		}
	}
	c := dial(t, addr)
	c.secure()
	c.do("AUTH PLAIN "+plain("", "joe", "correct horse"), "421 4.7.0 "+hostname+" Too many failed")
	c.expect("EOF")
	if m.logins != failuresMax || s.Stats().AuthFailed.Load() != failuresMax || s.Stats().AuthBarred.Load() != 1 {
		t.Errorf("%d passwords looked at, %d failed, %d barred", m.logins, s.Stats().AuthFailed.Load(), s.Stats().AuthBarred.Load())
	}
	<-clock
	clock <- now.Add(failuresTime)
	c = dial(t, addr)
	c.secure()
	c.do("AUTH PLAIN "+plain("", "joe", "correct horse"), "235 ")
}

// TestFailuresAreBounded: there are never too many to remember.
func TestFailuresAreBounded(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	f := newFailures(func() time.Time { return now })
	client := func(n int) netip.Prefix {
		return clientOf(netip.AddrFrom4([4]byte{192, byte(n >> 16), byte(n >> 8), byte(n)}))
	}
	for n := range clientsMax + 10 {
		now = now.Add(time.Millisecond)
		for range failuresMax {
			f.note(client(n))
		}
	}
	if len(f.of) != clientsMax || f.barred(client(9)) || !f.barred(client(10)) {
		t.Errorf("%d remembered", len(f.of))
	}
	if a, b := clientOf(netip.MustParseAddr("2001:db8::1")), clientOf(netip.MustParseAddr("2001:db8::ffff:1")); a != b || a == clientOf(netip.MustParseAddr("2001:db8:0:1::1")) {
		t.Errorf("%s and %s", a, b)
	}
}

// TestBounds: whoever talks and talks is let go, and there are never too many callers.
func TestBounds(t *testing.T) {
	m := &fakeMail{}
	s, addr := start(t, m, nil)
	for name, flood := range map[string]struct {
		say  string
		last string
	}{
		"commands":       {strings.Repeat("NOOP\r\n", commandsMax+1), "421 4.7.0"},
		"errors":         {strings.Repeat("XYZZY\r\n", errorsMax+1), "421 4.7.0"},
		"a line":         {strings.Repeat("x", lineMax+1), "500 5.5.2"},
		"nothing at all": {"", ""},
	} {
		c := dial(t, addr)
		c.expect("220 ")
		if flood.say == "" {
			_ = c.conn.Close()
			continue
		}
		c.send(flood.say)
		for last := ""; ; {
			got := c.reply()
			if got == "EOF" {
				if !strings.HasPrefix(last, flood.last) {
					t.Errorf("%s: ends with %q", name, last)
				}
				break
			}
			if strings.HasPrefix(got, "error: ") {
				t.Fatalf("%s: %s", name, got)
			}
			last = got
		}
	}
	waitFor(t, "the sessions to end", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.sessions) == 0 })
	var all []*caller
	for range connectionsMax {
		c := dial(t, addr)
		c.expect("220 ")
		all = append(all, c)
	}
	late := dial(t, addr)
	late.expect("421 4.7.0 " + hostname + " Too many connections")
	all[0].do("QUIT", "221 ")
	waitFor(t, "a place", func() bool { s.mu.Lock(); defer s.mu.Unlock(); return len(s.sessions) < connectionsMax })
	dial(t, addr).expect("220 ")
	m.mu.Lock()
	m.ready = errors.New("no quorum")
	m.mu.Unlock()
	dial(t, addr).expect("421 4.3.2")
}

// TestPerClient: no client but loopback takes all places.
func TestPerClient(t *testing.T) {
	m := &fakeMail{}
	s, _ := start(t, m, nil)
	for n := range connectionsPerClient + 2 {
		one := &session{s: s, client: netip.AddrFrom4([4]byte{203, 0, 113, 7})}
		if n >= connectionsPerClient+1 {
			one.client = netip.AddrFrom4([4]byte{203, 0, 113, 8})
		}
		_, ok := s.add(one)
		if want := n != connectionsPerClient; ok != want {
			t.Errorf("connection %d: %v", n, ok)
		}
		if ok {
			defer s.remove(one)
		}
	}
}

// TestShutdown: dialogues are told 421; a connection that was turned is not touched.
func TestShutdown(t *testing.T) {
	m := &fakeMail{deliver: make(chan struct{})}
	s, addr := start(t, m, nil)
	idle, turned := dial(t, addr), dial(t, addr)
	idle.expect("220 ")
	turned.secure()
	turned.do("AUTH PLAIN "+plain("", "joe", "correct horse"), "235 ")
	turned.do("ATRN", "250 ")
	waitFor(t, "the call", func() bool { return len(m.calls()) == 1 })
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	idle.expect("421 4.3.2")
	idle.expect("EOF")
	close(m.deliver)
	turned.send("220 primary.test\r\n")
	turned.expect("QUIT")
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Error("still listens")
	}
}

// FuzzDialogue: no input makes the server hang, panic or turn a connection for who did
// not prove who it is.
func FuzzDialogue(f *testing.F) {
	f.Add("EHLO a\r\nATRN\r\nQUIT\r\n")
	f.Add("EHLO a\r\nAUTH PLAIN " + plain("", "joe", "correct horse") + "\r\nATRN\r\n")
	f.Add("AUTH PLAIN\r\n*\r\nSTARTTLS\r\n\x16\x03\x01")
	f.Add("EHLO a\r\nSTARTTLS\r\n")
	m := &fakeMail{}
	pair, _ := certificate(f)
	s, err := New(Config{Hostname: hostname, Mail: m, TLS: &tls.Config{Certificates: []tls.Certificate{pair}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, said string) {
		ours, theirs := net.Pipe()
		ended := make(chan struct{})
		go func() { defer close(ended); s.handle(ours) }()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		_, _ = io.WriteString(theirs, said)
		_ = theirs.Close()
		<-ended
		if len(m.calls()) > 0 {
			t.Fatal(fmt.Sprintf("%q turned a connection", said))
		}
	})
}
