package ledger

import (
	"reflect"
	"strings"
	"testing"
)

// status is a report about recipients that were refused.
func status(kind string, recipients ...string) string {
	s := "From: MAILER-DAEMON@n1.test\r\nTo: <s@x.test>\r\nMIME-Version: 1.0\r\nContent-Type: multipart/report; report-type=delivery-status;\r\n\tboundary=\"b\"\r\n\r\n" +
		"--b\r\nContent-Type: text/plain\r\n\r\nIt was refused.\r\n--b\r\nContent-Type: " + kind + "\r\n\r\nReporting-MTA: dns; n1.test\r\n"
	for _, r := range recipients {
		s += "\r\nFinal-Recipient: rfc822; " + r + "\r\nAction: failed\r\nStatus: 5.1.1\r\nFinal-Log-ID: Q1\r\n"
	}
	return s + "--b\r\nContent-Type: text/rfc822-headers\r\n\r\nSubject: one\r\n\r\n--b--\r\n"
}

func TestReadNotices(t *testing.T) {
	got, err := ReadNotices([]byte(status("message/delivery-status", "a+m1@example.test", "b+m1@example.test")))
	want := []Notice{
		{Recipient: "a+m1@example.test", Action: "failed", Original: "Q1"}, {Recipient: "b+m1@example.test", Action: "failed", Original: "Q1"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %v (%v), want %v", got, err, want)
	}
	for name, bad := range map[string]string{
		"no report":          "Subject: x\r\n\r\nhello\r\n",
		"about nobody":       status("message/delivery-status"),
		"no delivery status": status("text/html", "a@example.test"),
		"no action":          strings.Replace(status("message/delivery-status", "a@example.test"), "Action: failed\r\n", "", 1),
		"empty":              "",
	} {
		if got, err := ReadNotices([]byte(bad)); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestCheckNotices(t *testing.T) {
	sent := func(s story, change func(*Intent), results ...Result) {
		i := Intent{ID: "m1", Attempt: 1, ReversePath: "s@x.test", Recipients: []string{recipient}, Octets: octetsOf(body)}
		change(&i)
		for n, r := range results {
			i.Attempt = n + 1
			if err := s.l.Intent(i); err != nil {
				s.t.Fatal(err)
			}
			if err := s.l.Outcome(Outcome{ID: "m1", Attempt: n + 1, Recipients: i.Recipients, Result: r, QueueID: "Q1"}); err != nil {
				s.t.Fatal(err)
			}
		}
	}
	as := func(*Intent) {}
	refused := func(s story) { _ = s.l.Refusal(Refusal{Recipient: recipient}) }
	told := func(s story, change func(*Notice)) {
		n := Notice{Recipient: recipient, Action: "failed", To: "s@x.test", Original: "Q1", QueueID: "R1"}
		change(&n)
		_ = s.l.Notice(n)
	}
	so := func(*Notice) {}
	never := func(Arrival, bool) bool { return false }
	before := func(_ Arrival, last bool) bool { return !last }
	for _, c := range []struct {
		name        string
		play        func(story)
		interrupted Interrupted
		want        Notices
		lost        int
	}{
		{"told", func(s story) { sent(s, as, OK); refused(s); told(s, so) }, never, Notices{Due: 1, Told: 1}, 0},
		{"not told", func(s story) { sent(s, as, OK); refused(s) }, never, Notices{Due: 1, Untold: 1}, 1},
		{"not told, and held", func(s story) { sent(s, as, OK); refused(s); _ = s.l.Held(Held{Recipient: recipient}) }, never, Notices{Due: 1, Untold: 1}, 0},
		{"told twice", func(s story) { sent(s, as, OK); refused(s); told(s, so); told(s, so) }, never,
			Notices{Due: 1, Told: 1, Extra: 1, TooMany: 1}, 0},
		{"told twice, and the first may not have been read", func(s story) {
			sent(s, as, OK)
			refused(s)
			told(s, so)
			_ = s.l.Unread(Unread{Recipient: "s@x.test", QueueID: "R1"})
			told(s, so)
		}, never, Notices{Due: 1, Told: 1, Extra: 1, Bound: 1}, 0},
		{"told twice, and interrupted", func(s story) { sent(s, as, OK); refused(s); told(s, so); told(s, so) }, before,
			Notices{Due: 1, Told: 1, Extra: 1, Bound: 1}, 0},
		{"told twice of what was accepted twice", func(s story) {
			sent(s, as, Info, OK)
			refused(s)
			told(s, so)
			told(s, func(n *Notice) { n.Original, n.QueueID = "Q2", "R2" })
		}, never, Notices{Due: 1, Told: 1, Extra: 1, Bound: 1}, 0},
		{"two reports of what was accepted once", func(s story) {
			sent(s, as, OK)
			refused(s)
			told(s, so)
			told(s, func(n *Notice) { n.QueueID = "R2" })
		}, before, Notices{Due: 1, Told: 1, Extra: 1, TooMany: 1}, 0},
		{"it has no sender", func(s story) {
			sent(s, func(i *Intent) { i.ReversePath = "" }, OK)
			refused(s)
			_ = s.l.Held(Held{Recipient: recipient})
		}, never, Notices{Silent: 1}, 0},
		{"it has no sender, and is not even held", func(s story) { sent(s, func(i *Intent) { i.ReversePath = "" }, OK); refused(s) }, never,
			Notices{Silent: 1}, 1},
		{"nobody was told", func(s story) {
			sent(s, func(i *Intent) { i.ReversePath = "" }, OK)
			refused(s)
			told(s, func(n *Notice) { n.To = "" })
		}, never, Notices{Silent: 1, Undue: 1}, 0},
		{"told, NOTIFY=NEVER", func(s story) { sent(s, func(i *Intent) { i.Notify = "NEVER" }, OK); refused(s); told(s, so) }, never,
			Notices{Silent: 1, Undue: 1}, 0},
		{"told, NOTIFY=SUCCESS", func(s story) { sent(s, func(i *Intent) { i.Notify = "SUCCESS" }, OK); refused(s); told(s, so) }, never,
			Notices{Silent: 1, Undue: 1}, 0},
		{"told, NOTIFY=DELAY,FAILURE", func(s story) {
			sent(s, func(i *Intent) { i.Notify = "DELAY,FAILURE" }, OK)
			refused(s)
			told(s, so)
		}, never, Notices{Due: 1, Told: 1}, 0},
		{"told of a list's mail", func(s story) { sent(s, func(i *Intent) { i.Automatic = true }, OK); refused(s); told(s, so) }, never,
			Notices{Silent: 1, Undue: 1}, 0},
		{"told in a domain of which nobody is", func(s story) { s.l.Tell("example.org"); sent(s, as, OK); refused(s); told(s, so) }, never,
			Notices{Silent: 1, Undue: 1}, 0},
		{"told somebody else", func(s story) {
			sent(s, as, OK)
			refused(s)
			told(s, func(n *Notice) { n.To = "t@x.test" })
		}, never, Notices{Due: 1, Told: 1, Undue: 1}, 0},
		{"told by somebody", func(s story) {
			sent(s, as, OK)
			refused(s)
			told(s, func(n *Notice) { n.ReversePath = "postmaster@n1.test" })
		}, never, Notices{Due: 1, Told: 1, Undue: 1}, 0},
		{"told that it is delayed", func(s story) {
			sent(s, as, OK)
			refused(s)
			told(s, func(n *Notice) { n.Action = "delayed" })
		}, never, Notices{Due: 1, Told: 1, Undue: 1}, 1},
		{"told that it failed, and it was delivered", func(s story) { sent(s, as, OK); s.arrive(recipient, "s@x.test", trace+body); told(s, so) }, never,
			Notices{Undue: 1}, 0},
		{"not told of what was taken in spite of a refusal", func(s story) { sent(s, as, OK); refused(s); s.arrive(recipient, "s@x.test", trace+body) }, never,
			Notices{}, 0},
		{"told of what was never accepted", func(s story) { sent(s, as, Fail); refused(s); told(s, so) }, never, Notices{Undue: 1}, 0},
		{"told of what may have been accepted", func(s story) { sent(s, as, Info); refused(s); told(s, so) }, never, Notices{Bound: 1}, 0},
		{"told of what nobody sent", func(s story) { told(s, so) }, never, Notices{Undue: 1}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := New()
			l.Tell("Example.test")
			c.play(story{t, l})
			got := l.CheckNotices(c.interrupted)
			if faults := got.Untold + got.Undue + got.TooMany; (faults > 0) != (len(got.Cases) > 0) {
				t.Errorf("%d faults, cases %q", faults, got.Cases)
			}
			got.Cases = nil
			if !reflect.DeepEqual(got, c.want) {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
			if r := l.Check(); r.Lost != c.lost {
				t.Errorf("lost: %+v, want %d", r, c.lost)
			}
		})
	}
}

// What a primary refused is settled when its sender knows, or nobody is to know.
func TestMissingOfRefused(t *testing.T) {
	l := New()
	l.Tell("example.test")
	s := story{t, l}
	s.try(1, OK)
	if missing, _ := l.Missing(); missing != 1 {
		t.Errorf("%d missing", missing)
	}
	_ = l.Refusal(Refusal{Recipient: recipient})
	if missing, _ := l.Missing(); missing != 1 || !l.Due(recipient) {
		t.Errorf("%d missing, due %v: its sender is to be told", missing, l.Due(recipient))
	}
	_ = l.Notice(Notice{Recipient: recipient, Action: "failed", To: "s@x.test"})
	if missing, _ := l.Missing(); missing != 0 {
		t.Errorf("%d missing, and its sender was told", missing)
	}
	l.Tell("example.org")
	if missing, _ := l.Missing(); missing != 0 || l.Due(recipient) {
		t.Errorf("%d missing, due %v: nobody is to be told", missing, l.Due(recipient))
	}
	// A primary that refuses what nobody sent was given what it should not get.
	_ = l.Refusal(Refusal{Recipient: "victim@elsewhere.test"})
	if r := l.Check(); r.Unexpected != 1 {
		t.Errorf("%+v", r)
	}
}
