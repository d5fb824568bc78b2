package sim

import (
	"bytes"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	netmail "net/mail"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// openHome starts the sender's host. It returns what arrived, and ends with stop.
func (s *story) openHome(faults *sink.Faults) (arrived *arrivals, stop func()) {
	s.t.Helper()
	arrived = new(arrivals)
	l, err := s.network.Host(homeName).Listen(25)
	if err != nil {
		s.t.Fatal(err)
	}
	server := sink.Start(l, sink.Options{Hostname: homeName, Faults: faults, Arrival: func(a ledger.Arrival) error {
		arrived.see(a)
		return nil
	}})
	return arrived, server.Close
}

// telling puts the domain as one whose senders are told.
func (s *story) telling(d mail.Domain, warning, lifetime time.Duration) {
	s.t.Helper()
	s.do(fsm.PutDomain{Domain: fsm.Domain{
		Name: d, Targets: []fsm.Target{{Host: s.network.Host(primaryName).IP().String(), Port: 25}},
		Schedule: fsm.Schedule{RetryMin: fsm.RetryMinDefault, RetryMax: fsm.RetryMaxDefault, Lifetime: fsm.Millis(lifetime.Milliseconds())},
		Bounce:   fsm.BounceAlways, DelayWarning: fsm.Millis(warning.Milliseconds()),
	}})
}

// report finds the report about a message, and reads it as its recipient would: its
// media types, and the fields about the recipients.
func (s *story) report(about string) (kinds []string, fields netmail.Header) {
	s.t.Helper()
	view := s.member("n1")
	for m := range view.Messages(mail.QueueID{}) {
		if !m.Envelope.From.IsNull() {
			continue
		}
		body, err := s.nodes["n1"].node.Member().OpenBody(s.ctx, m.Body)
		if err != nil {
			s.t.Fatal(err)
		}
		content, err := io.ReadAll(body)
		body.Close()
		if err != nil || !bytes.Contains(content, []byte(about)) {
			continue
		}
		letter, err := netmail.ReadMessage(bytes.NewReader(content))
		if err != nil {
			s.t.Fatal(err)
		}
		kind, parameters, err := mime.ParseMediaType(letter.Header.Get("Content-Type"))
		if err != nil || kind != "multipart/report" || parameters["report-type"] != "delivery-status" {
			s.t.Fatalf("a report of type %s %v: %v", kind, parameters, err)
		}
		for parts := multipart.NewReader(letter.Body, parameters["boundary"]); ; {
			p, err := parts.NextPart()
			if err == io.EOF {
				return kinds, fields
			}
			if err != nil {
				s.t.Fatal(err)
			}
			kinds = append(kinds, p.Header.Get("Content-Type"))
			if p.Header.Get("Content-Type") == "message/delivery-status" {
				text, _ := io.ReadAll(p)
				_, recipient, _ := strings.Cut(string(text), "\r\n\r\n")
				status, err := netmail.ReadMessage(strings.NewReader(recipient + "\r\n"))
				if err != nil {
					s.t.Fatalf("%v in %q", err, recipient)
				}
				fields = status.Header
			}
		}
	}
	s.t.Fatalf("no report about %s", about)
	return nil, nil
}

// TestSendersAreTold: of mail that the primary refuses for good its sender hears once,
// whoever led meanwhile, and the message ends with that; of a list's nobody hears, and
// it stays.
func TestSendersAreTold(t *testing.T) {
	tell(t, 720, func(t *testing.T, s *story) {
		const domain = mail.Domain("example.org")
		s.zone = zone{homeName: s.network.Host(homeName).IP()}
		s.begin()
		s.telling(domain, 0, 0)
		s.faults.Set(sink.Fault{Stage: sink.Rcpt, Action: sink.Refuse, Rate: 1})
		s.primaryUp()

		first := s.mustGive("n1", letterTo{to: "nobody@example.org", text: "to nobody"}, thenRead)
		s.awaitState(first, 5*time.Minute, fsm.RecipientFailed)
		kinds, fields := s.report(first)
		if fmt.Sprint(kinds) != "[text/plain; charset=us-ascii message/delivery-status text/rfc822-headers]" {
			t.Errorf("a report of %q", kinds)
		}
		if fields.Get("Final-Recipient") != "rfc822; nobody@example.org" || fields.Get("Action") != "failed" || !strings.HasPrefix(fields.Get("Diagnostic-Code"), "smtp; 5") {
			t.Errorf("the report says %v", fields)
		}

		// Its sender's host is away; meanwhile every node leads once.
		ids := []string{first}
		for i, name := range nodeNames {
			ids = append(ids, s.mustGive(name, letterTo{to: "nobody@example.org", text: fmt.Sprintf("to nobody %d", i)}, thenRead))
			leader, _ := s.leader()
			s.Kill(leader)
			s.start(leader)
			s.awaitReady(nodeNames...)
		}
		for _, id := range ids {
			s.awaitState(id, 30*time.Minute, fsm.RecipientFailed) // one in doubt waits
		}
		list := s.mustGive("n2", letterTo{to: "nobody@example.org", text: "news", header: "List-Id: <news.sender.test>\r\n"}, thenRead)
		s.awaitState(list, 5*time.Minute, fsm.RecipientHeld)
		s.await(5*time.Minute, "nothing is owed for the list's mail", func() bool {
			m, _ := s.message(list)
			return m.Recipients[0].Report == 0 && strings.Contains(m.Recipients[0].Reason, "mailing list")
		})

		arrived, stop := s.openHome(nil)
		defer stop()
		s.await(24*time.Hour, "all reports arrive", func() bool { return len(arrived.of("joan@sender.test")) >= len(ids) })
		time.Sleep(20 * time.Minute)
		all := arrived.of("joan@sender.test")
		if len(all) != len(ids) {
			t.Errorf("%d reports about %d messages", len(all), len(ids))
		}
		for _, a := range all {
			if a.ReversePath != "" {
				t.Errorf("a report from %q", a.ReversePath)
			}
		}
		if held, ok := s.message(list); !ok || held.State() != fsm.RecipientHeld {
			t.Errorf("the list's mail is %v", held.State())
		}
		for _, name := range nodeNames {
			s.await(time.Hour, "the outbound domain is gone at "+name, func() bool { return len(s.member(name).Destinations()) == len(relayDomains) })
		}
	})
}

// TestRegressionReportsGoFromEveryNode: a sender's host that the leader cannot reach has
// its reports from the others. They were refused leases of reports, which wait in
// something that is no domain.
func TestRegressionReportsGoFromEveryNode(t *testing.T) {
	tell(t, 722, func(t *testing.T, s *story) {
		s.zone = zone{homeName: s.network.Host(homeName).IP()}
		s.begin()
		s.telling("example.org", 0, 0)
		s.faults.Set(sink.Fault{Stage: sink.Rcpt, Action: sink.Refuse, Rate: 1})
		arrived, stop := s.openHome(nil)
		defer stop()
		leader, _ := s.leader()
		s.network.Cut(leader, homeName)
		s.primaryUp()
		s.mustGive("n1", letterTo{to: "nobody@example.org", text: "to nobody"}, thenRead)
		s.await(5*time.Minute, "the report arrives", func() bool { return len(arrived.of("joan@sender.test")) == 1 })
		if now, _ := s.leader(); now != leader {
			t.Errorf("%s led, and now %s", leader, now)
		}
	})
}

// TestSendersAreWarned: who asked for it hears that his mail waits, and who did not say
// otherwise that its time is over; the mail itself stays.
func TestSendersAreWarned(t *testing.T) {
	tell(t, 721, func(t *testing.T, s *story) {
		const domain = mail.Domain("example.org")
		s.zone = zone{homeName: s.network.Host(homeName).IP()}
		s.begin()
		s.telling(domain, 20*time.Minute, 40*time.Minute)
		warned := s.mustGive("n1", letterTo{to: "a@example.org", text: "warn me", notify: "DELAY"}, thenRead)
		silent := s.mustGive("n2", letterTo{to: "b@example.org", text: "tell me nothing", notify: "NEVER"}, thenRead)
		late := s.mustGive("n3", letterTo{to: "c@example.org", text: "tell me of failures"}, thenRead)
		outbound := fsm.OutboundDomain(homeName)
		reports := func(n int) func() bool {
			return func() bool { return s.member("n1").Counts(outbound).Queued == n }
		}
		s.await(30*time.Minute, "a warning", reports(1))
		if _, fields := s.report(warned); fields.Get("Action") != "delayed" || fields.Get("Will-Retry-Until") == "" {
			t.Errorf("the warning says %v", fields)
		}
		s.await(30*time.Minute, "the end of the lifetime", reports(2))
		if _, fields := s.report(late); fields.Get("Action") != "failed" || fields.Get("Final-Recipient") != "rfc822; c@example.org" {
			t.Errorf("the report says %v", fields)
		}
		arrived, stop := s.openHome(nil)
		defer stop()
		s.await(5*time.Hour, "both arrive", reports(0))
		time.Sleep(20 * time.Minute)
		if n := len(arrived.of("joan@sender.test")); n != 2 {
			t.Errorf("%d reports", n)
		}
		for _, id := range []string{warned, silent, late} {
			if m, ok := s.message(id); !ok || m.State() != fsm.RecipientHeld {
				t.Errorf("%s is %v", id, m.State())
			}
			s.do(fsm.Release{ID: s.queueID(id)})
		}
		s.primaryUp()
		s.await(time.Hour, "all is delivered", s.empty)
	})
}
