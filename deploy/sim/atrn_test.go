package sim

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Credentials are a name and password that a primary calls for its mail with.
type credentials struct{ user, password string }

// secret is what the cluster keeps of the password, cheaply made.
func (a credentials) secret(t *testing.T) fsm.PasswordHash {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(a.password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return fsm.PasswordHash(hash)
}

// atrn has the primary call a node for its mail: it says AUTH and ATRN, and where that is
// taken it is the server on the connection until that ends. The reply to ATRN, or what
// came in its place, is returned. For others it is a primary that nobody can connect to.
func (s *story) atrn(node string, a credentials, domains string) (string, error) {
	ctx, cancel := context.WithTimeout(s.ctx, time.Minute)
	defer cancel()
	conn, err := s.network.Host(primaryName).Dial(ctx, node+":366")
	if err != nil {
		return "", err
	}
	defer conn.Close()
	in := bufio.NewReader(conn)
	var wire io.Writer = conn
	say := func(line, want string) (string, error) {
		if line != "" {
			if _, err := io.WriteString(wire, line+"\r\n"); err != nil {
				return "", err
			}
		}
		for {
			reply, err := in.ReadString('\n')
			if err != nil {
				return "", fmt.Errorf("reply to %.5q: %w", line, err)
			}
			if len(reply) > 3 && reply[3] == '-' {
				continue
			}
			if reply = strings.TrimSpace(reply); !strings.HasPrefix(reply, want) {
				return reply, fmt.Errorf("%.5q: %s", line, reply)
			}
			return reply, nil
		}
	}
	for _, step := range [][2]string{{"", "220"}, {"EHLO primary.test", "250"}, {"STARTTLS", "220"}} {
		if reply, err := say(step[0], step[1]); err != nil {
			return reply, err
		}
	}
	secured := tls.Client(conn, &tls.Config{InsecureSkipVerify: true})
	if err := secured.HandshakeContext(ctx); err != nil {
		return "", err
	}
	in, wire = bufio.NewReader(secured), secured
	plain := base64.StdEncoding.EncodeToString([]byte("\x00" + a.user + "\x00" + a.password))
	for _, step := range [][2]string{{"EHLO primary.test", "250"}, {"AUTH PLAIN " + plain, "235"}} {
		if reply, err := say(step[0], step[1]); err != nil {
			return reply, err
		}
	}
	reply, err := say(strings.TrimSpace("ATRN "+domains), "250")
	if err != nil {
		return reply, err
	}
	turned := &only{conn: closing{secured, make(chan struct{}), new(sync.Once)}, closed: make(chan struct{})}
	server := sink.Start(turned, sink.Options{Hostname: "mail.example.org", Faults: s.faults, Arrival: func(a ledger.Arrival) error {
		s.arriving(a)
		return s.ledger.Arrival(a)
	}})
	<-turned.conn.closed
	server.Close()
	return reply, nil
}

// An only is a listener with one connection.
type only struct {
	conn   closing
	taken  bool
	closed chan struct{}
	once   sync.Once
}

func (o *only) Accept() (net.Conn, error) {
	if !o.taken {
		o.taken = true
		return o.conn, nil
	}
	<-o.closed
	return nil, net.ErrClosed
}
func (o *only) Close() error   { o.once.Do(func() { close(o.closed) }); return nil }
func (o *only) Addr() net.Addr { return o.conn.LocalAddr() }

// A closing says when it was closed.
type closing struct {
	net.Conn
	closed chan struct{}
	once   *sync.Once
}

func (c closing) Close() error { c.once.Do(func() { close(c.closed) }); return c.Conn.Close() }

// listensForCalls has the nodes listen for callers, with their own certificates.
func (s *story) listensForCalls() {
	s.adjust = func(c *config.Config) {
		c.ATRNListen, c.SMTPCert, c.SMTPKey = []string{string(c.Node) + ":366"}, c.Cert, c.Key
	}
}

// A primary without an address calls for the mail of both its domains, now at this node,
// now at that. Until it does nobody connects to it, and there is no alarm. A cut link and
// a node that is killed in the middle of a call cost no letter; what a dot without a
// reply costs is counted.
func TestAPrimaryWithoutAnAddressCallsForItsMail(t *testing.T) {
	tell(t, 720, func(t *testing.T, s *story) {
		s.listensForCalls()
		s.begin()
		us, others := credentials{"mail.example.org", "correct horse"}, credentials{"elsewhere", "battery staple"}
		for _, d := range relayDomains {
			s.do(fsm.PutDomain{Domain: fsm.Domain{
				Name: d, OnDemand: true, Callers: fsm.Callers{User: us.user, Secret: us.secret(t)}, ConnectionsMax: fsm.ConnectionsMaxDefault,
				Schedule: fsm.Schedule{RetryMin: fsm.RetryMinDefault, RetryMax: fsm.RetryMaxDefault, Lifetime: fsm.LifetimeDefault},
			}})
		}
		s.do(fsm.PutDomain{Domain: fsm.Domain{Name: "elsewhere.test", OnDemand: true, Callers: fsm.Callers{User: others.user, Secret: others.secret(t)}}})
		s.primaryUp() // It runs, and nobody knows where.
		var seen copies
		var cutAfter, killAfter int
		var lock sync.Mutex
		arrived := 0
		s.arriving = func(a ledger.Arrival) {
			s.arrived.see(a)
			seen.see(a)
			lock.Lock()
			defer lock.Unlock()
			switch arrived++; arrived {
			case cutAfter:
				s.network.Cut(primaryName, "n1")
			case killAfter:
				go s.Kill("n2")
			}
		}
		if _, err := s.Send(s.ctx, 200, 4, 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(6 * time.Hour)
		for _, name := range nodeNames {
			if s.alarmed(name, admin.AlarmNextHopDown) {
				t.Errorf("%s has an alarm for a primary that just does not call", name)
			}
			for _, d := range relayDomains {
				if h := s.member(name).NextHop(d); h.State != fsm.NextHopUp {
					t.Errorf("%s: %+v", name, h)
				}
			}
		}
		count := func() int {
			lock.Lock()
			defer lock.Unlock()
			return arrived
		}
		if n := count(); n > 0 {
			t.Fatalf("%d letters arrived without a call", n)
		}
		for want, call := range map[string]func() (string, error){
			"535": func() (string, error) { return s.atrn("n1", credentials{us.user, others.password}, "") },
			"450": func() (string, error) { return s.atrn("n1", others, "example.org") },
			"453": func() (string, error) { return s.atrn("n2", others, "") },
		} {
			if reply, err := call(); err == nil || !strings.HasPrefix(reply, want) {
				t.Errorf("got %q, %v, want %s", reply, err, want)
			}
		}
		lock.Lock()
		cutAfter, killAfter = 30, 80
		lock.Unlock()
		for _, node := range []string{"n1", "n2"} {
			before := count()
			if reply, err := s.atrn(node, us, ""); err != nil {
				t.Errorf("%s: %s, %v", node, reply, err)
			}
			if count() == before {
				t.Errorf("nothing arrived by way of %s", node)
			}
		}
		if s.empty() {
			t.Error("all arrived before the link was cut and the node was killed")
		}
		s.network.HealAll()
		s.start("n2")
		s.awaitReady(nodeNames...)
		for call := 0; !s.empty() && call < 20; call++ {
			time.Sleep(10 * time.Minute) // what is in doubt waits
			_, _ = s.atrn(nodeNames[call%len(nodeNames)], us, "example.test,example.org")
		}
		if !s.empty() {
			t.Fatal("mail is left")
		}
		report := s.ledger.Check()
		if report.Accepted < 200 || !report.OK() {
			t.Errorf("the ledger does not balance: %+v", report)
		}
		seen.check(t, s.totals())
		if reply, err := s.atrn("n3", us, ""); err == nil || !strings.HasPrefix(reply, "453") {
			t.Errorf("nothing is left: %q, %v", reply, err)
		}
	})
}

// What is not called for does not wait for ever: it is held when its lifetime is over.
func TestMailThatNobodyCallsForIsHeldInTheEnd(t *testing.T) {
	tell(t, 721, func(t *testing.T, s *story) {
		s.begin()
		s.do(fsm.PutDomain{Domain: fsm.Domain{
			Name: "example.org", OnDemand: true, ConnectionsMax: fsm.ConnectionsMaxDefault,
			Schedule: fsm.Schedule{RetryMin: fsm.RetryMinDefault, RetryMax: fsm.RetryMaxDefault, Lifetime: 3_600_000},
		}})
		s.primaryUp()
		id := s.mustGive("n1", letterTo{to: "a@example.org", text: "for whom nobody calls"}, thenRead)
		s.awaitState(id, 90*time.Minute, fsm.RecipientHeld)
		if n := len(s.arrived.of("a@example.org")); n > 0 {
			t.Error("it arrived")
		}
	})
}

// etrn says ETRN to a node from the sender's host, and returns the reply.
func (s *story) etrn(node, domain string) string {
	s.t.Helper()
	c, err := s.dial(node)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.conn.Close()
	if code, text, err := c.reply(); code != 220 {
		s.t.Fatalf("%d %s %v", code, text, err)
	}
	if code, text, err := c.say("EHLO primary.test"); code != 250 {
		s.t.Fatalf("%d %s %v", code, text, err)
	}
	code, text, err := c.say("ETRN " + domain)
	if err != nil {
		s.t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", code, text)
}

// Each reply of RFC 1985 section 5.3, from nodes in the state that it is for.
func TestRepliesToETRN(t *testing.T) {
	tell(t, 722, func(t *testing.T, s *story) {
		s.begin()
		const domain = mail.Domain("example.org")
		caller := netip.PrefixFrom(s.network.Host(senderName).IP(), s.network.Host(senderName).IP().BitLen())
		d := fsm.Domain{
			Name: domain, Targets: []fsm.Target{{Host: s.network.Host(primaryName).IP().String(), Port: 25}}, ConnectionsMax: 4, ETRN: []netip.Prefix{caller},
			Schedule: fsm.Schedule{RetryMin: fsm.RetryMinDefault, RetryMax: fsm.RetryMaxDefault, Lifetime: fsm.LifetimeDefault},
		}
		s.do(fsm.PutDomain{Domain: d})
		expect := func(node string, d mail.Domain, want string) {
			t.Helper()
			if got := s.etrn(node, string(d)); !strings.HasPrefix(got, want) {
				t.Errorf("%s, %s: %q, want %q", node, d, got, want)
			}
		}
		s.outage(domain, 3, func(n int) string { return fmt.Sprintf("user%d@%s", n, domain) })
		expect("n1", "example.test", "459 4.7.1")
		expect("n1", "nowhere.test", "459 4.7.1")
		s.primaryUp()
		called := time.Now()
		expect("n1", domain, "253 2.0.0 OK, 3 pending messages")
		expect("n1", domain, "250 2.0.0 OK, queuing")
		s.await(time.Minute, "all is delivered", func() bool { return s.member("n1").Counts(domain).Queued == 0 })
		if took := time.Since(called); took > 8*time.Second {
			t.Errorf("called for, and delivered %s later", took)
		}
		expect("n1", domain, "251 2.0.0 OK, no messages")

		d.Targets, d.OnDemand = nil, true
		s.do(fsm.PutDomain{Domain: d})
		expect("n1", domain, "458 4.3.0") // nobody knows where to deliver to
		d.ETRN = nil
		s.do(fsm.PutDomain{Domain: d})
		expect("n1", domain, "459 4.7.1")

		// Who is cut off can neither start anything nor say "never".
		_, followers := s.leader()
		alone, err := s.dial(followers[0])
		if err != nil {
			t.Fatal(err)
		}
		defer alone.conn.Close()
		_, _, _ = alone.reply()
		_, _, _ = alone.say("EHLO primary.test")
		s.cutOff(followers[0])
		s.await(2*time.Minute, "it knows that it is cut off", func() bool { return s.nodes[followers[0]].node.Member().Ready() != nil })
		if code, text, err := alone.say("ETRN nowhere.test"); code != 458 {
			t.Errorf("%d %s %v", code, text, err)
		}
		s.network.HealAll()
		s.awaitReady(nodeNames...)
	})
}
