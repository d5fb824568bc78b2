package dsn

import (
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestNever is the table of what no report is made about, whatever the sender
// asked for.
func TestNever(t *testing.T) {
	const asked = mail.NotifyFailure | mail.NotifyDelay | mail.NotifySuccess
	header := func(fields string) func(*Report) {
		return func(r *Report) {
			r.Original.Content = []byte("From: a@client.test\r\n" + fields + "\r\nbody\r\n")
			r.Original.Size = mail.ByteSize(len(r.Original.Content))
		}
	}
	from := func(local, host string) func(*Report) {
		return func(r *Report) {
			r.Original.Envelope.From = mail.ReversePath{Mailbox: mail.Mailbox{Local: local, Host: host}}
		}
	}
	for _, test := range []struct {
		what   string
		change func(*Report)
		want   Verdict
	}{
		{"plain mail", func(*Report) {}, Due},
		{"an empty message", func(r *Report) { r.Original.Content, r.Original.Size = nil, 0 }, Due},

		{"a null sender", from("", ""), NullSender},
		{"an address literal", from("alice", "[192.0.2.1]"), Unreachable},
		{"no host", from("alice", ""), Unreachable},
		{"no local part", from("", "client.test"), Unreachable},
		{"a line end in the sender", from("a\r\nBcc: x@y.test\r\n", "client.test"), Unreachable},
		{"a line end of Unicode", from("a\u2028b", "client.test"), Unreachable},
		{"a line end of C1", from("a\u0085b", "client.test"), Unreachable},
		{"text that turns around", from("a\u202eb", "client.test"), Unreachable},
		{"what is not UTF-8", from("a\xffb", "client.test"), Unreachable},
		{"an open quote", from(`"a`, "client.test"), Unreachable},
		{"a second path", from("a>,<b", "client.test"), Unreachable},
		{"a host with a space", from("a", "client.test> X"), Unreachable},
		{"a source route", from("@x.test:a", "client.test"), Unreachable},
		{"a node", from("postmaster", "mx1.backup.test"), OwnSender},
		{"a node, in capitals", from("root", "MX1.Backup.TEST"), OwnSender},
		{"the node that reports", func(r *Report) { from("root", "mx2.backup.test")(r); r.Own = nil }, OwnSender},
		{"itself", from("bob", "example.test"), SelfSent},
		{"itself, in capitals", from("BOB", "EXAMPLE.test"), SelfSent},
		{"a neighbour", from("bobby", "example.test"), Due},
		{"the bare postmaster to himself", func(r *Report) {
			from("postmaster", "example.test")(r)
			r.Original.Envelope.Recipients[0].Path = mail.ForwardPath{Mailbox: mail.Mailbox{Local: "Postmaster"}}
		}, SelfSent},

		{"Auto-Submitted: no", header("Auto-Submitted: no\r\n"), Due},
		{"Auto-Submitted: No (a comment)", header("Auto-Submitted: (yes) No (a (nested \\) one))\r\n"), Due},
		{"Auto-Submitted: no; with a parameter", header("Auto-Submitted: no; owner=x\r\n"), Due},
		{"Auto-Submitted: auto-generated", header("Auto-Submitted: auto-generated\r\n"), AutoSubmitted},
		{"Auto-Submitted: auto-replied", header("AUTO-SUBMITTED: auto-replied\r\n"), AutoSubmitted},
		{"Auto-Submitted: an extension", header("Auto-Submitted: auto-notified; owner-email=\"x@y.test\"\r\n"), AutoSubmitted},
		{"Auto-Submitted, folded", header("Auto-Submitted:\r\n auto-\r\n\tgenerated\r\n"), AutoSubmitted},
		{"Auto-Submitted, folded before its no", header("Auto-Submitted:\r\n no\r\n"), Due},
		{"Auto-Submitted, no in its second line", header("Auto-Submitted: auto-generated\r\n no\r\n"), AutoSubmitted},
		{"Auto-Submitted, twice", header("Auto-Submitted: no\r\nAuto-Submitted: auto-replied\r\n"), AutoSubmitted},
		{"Auto-Submitted, empty", header("Auto-Submitted:\r\n"), AutoSubmitted},
		{"Auto-Submitted, no behind an open comment", header("Auto-Submitted: (no\r\n"), AutoSubmitted},
		{"Auto-Submitted, a space before the colon", header("Auto-Submitted : auto-replied\r\n"), AutoSubmitted},
		{"Auto-Submitted, behind what is no field", header("garbage\r\nAuto-Submitted: auto-replied\r\n"), AutoSubmitted},
		{"Auto-Submitted, lines end in LF", header("Auto-Submitted: auto-replied\n"), AutoSubmitted},
		{"Auto-Submitted in the body", header("\r\nAuto-Submitted: auto-replied\r\n"), Due},
		{"Auto-Submitted in another field", header("Subject: x\r\n Auto-Submitted: auto-replied\r\n"), Due},
		{"Precedence: bulk", header("Precedence: bulk\r\n"), BulkMail},
		{"Precedence, folded", header("Precedence: (a\r\n comment)\r\n\tbulk\r\n"), BulkMail},
		{"Precedence: list", header("precedence: List\r\n"), BulkMail},
		{"Precedence: junk", header("Precedence:junk (sorry)\r\n"), BulkMail},
		{"Precedence: first-class", header("Precedence: first-class\r\n"), Due},
		{"Precedence: special-delivery, bulk", header("Precedence: special-delivery, bulk\r\n"), BulkMail},
		{"List-Id", header("List-Id: <x.list.test>\r\n"), ListMail},
		{"List-Unsubscribe", header("LIST-UNSUBSCRIBE: <mailto:x@list.test>\r\n"), ListMail},
		{"List-Post, empty", header("List-Post:\r\n"), ListMail},
		{"Listing", header("Listing: x\r\n"), Due},

		{"a header without an end", func(r *Report) {
			r.Original.Content = []byte(strings.Repeat("X: y\r\n", int(ContentBytesMax)/6+1))
			r.Original.Size = 1 << 20
		}, HeaderTooLong},
		{"a header that ends too late", func(r *Report) {
			r.Original.Content = []byte(strings.Repeat("X: y\r\n", int(ContentBytesMax)/6+1) + "\r\nbody\r\n")
			r.Original.Size = mail.ByteSize(len(r.Original.Content))
		}, HeaderTooLong},
		{"a header cut in a line", func(r *Report) { r.Original.Content, r.Original.Size = []byte("X: y\r\nAuto-Submi"), 1000 }, HeaderTooLong},
		{"a header cut in its end", func(r *Report) { r.Original.Content, r.Original.Size = []byte("X: y\r\n\r"), 1000 }, HeaderTooLong},

		{"NOTIFY=NEVER", func(r *Report) { r.Original.Envelope.Recipients[0].Notify = mail.NotifyNever }, NotifyNever},
		{"NEVER and more", func(r *Report) { r.Original.Envelope.Recipients[0].Notify = mail.NotifyNever | asked }, NotifyNever},
		{"no such recipient", func(r *Report) { r.Fates[0].Recipient = 1 }, NoRecipient},
		{"a recipient before the first", func(r *Report) { r.Fates[0].Recipient = -1 }, NoRecipient},
	} {
		for _, k := range []Kind{Failure, Expired, Delay, Relayed} {
			r := sample(k)
			r.Original.Envelope.Recipients[0].Notify = asked
			test.change(&r)
			want := test.want
			if want == SelfSent && k == Relayed {
				want = Due // it reached him
			}
			if got := Judge(r); got[0] != want {
				t.Errorf("%s, %s: %s, want %s", test.what, k, got[0], want)
			}
			m, ok := Compose(r)
			if ok != (want == Due) || ok != (len(m.Content) > 0) {
				t.Errorf("%s, %s: a report is %v", test.what, k, ok)
			}
			if ok {
				parse(t, r, m)
			}
		}
	}
}

// TestNotify is NOTIFY against what a report is about (RFC 3461 sections 5.2.2,
// 5.2.5 and 5.2.6).
func TestNotify(t *testing.T) {
	const (
		never, success, failure, delay = mail.NotifyNever, mail.NotifySuccess, mail.NotifyFailure, mail.NotifyDelay
	)
	for _, test := range []struct {
		notify mail.Notify
		kinds  []Kind // for which a report is due
	}{
		{0, []Kind{Failure, Expired}},
		{never, nil},
		{success, []Kind{Relayed}},
		{failure, []Kind{Failure, Expired}},
		{delay, []Kind{Delay}},
		{success | failure, []Kind{Relayed, Failure, Expired}},
		{success | failure | delay, []Kind{Relayed, Failure, Expired, Delay}},
		{never | success | failure | delay, nil},
	} {
		for _, k := range []Kind{Failure, Expired, Delay, Relayed, 0, 9} {
			for _, offers := range []bool{false, true} {
				r := sample(k)
				r.Original.Envelope.Recipients[0].Notify = test.notify
				r.Fates[0].OffersDSN = offers
				want := slices.Contains(test.kinds, k) && !(k == Relayed && offers)
				if got := Judge(r)[0]; (got == Due) != want {
					t.Errorf("NOTIFY %04b, %s, next hop offers DSN %v: %s", test.notify, k, offers, got)
				}
				if owes := OwesRelayed(test.notify, offers); k == Relayed && owes != want {
					t.Errorf("NOTIFY %04b, next hop offers DSN %v: owes %v", test.notify, offers, owes)
				}
			}
		}
	}
}

// TestOnlyWhoAsked: a report names those for whom it is due and no other
// recipient (RFC 3461 section 5.2.8).
func TestOnlyWhoAsked(t *testing.T) {
	r := sample(Failure)
	r.Original.Envelope.Recipients = []mail.Recipient{recipient("bob"), recipient("carol"), recipient("dave"), recipient("eve")}
	r.Original.Envelope.Recipients[1].Notify = mail.NotifyNever
	r.Original.Envelope.Recipients[2].Notify = mail.NotifySuccess
	r.Original.Content = []byte("Subject: x\r\n\r\n")
	r.Original.Size = mail.ByteSize(len(r.Original.Content))
	r.Fates = nil
	for i := range 4 {
		r.Fates = append(r.Fates, Fate{Recipient: i, Reply: mail.Reply{Code: 550}})
	}
	if got := Judge(r); !slices.Equal(got, []Verdict{Due, NotifyNever, NotAsked, Due}) {
		t.Errorf("verdicts %v", got)
	}
	m, _ := Compose(r)
	parse(t, r, m)
	for name, want := range map[string]bool{"bob": true, "carol": false, "dave": false, "eve": true} {
		if strings.Contains(string(m.Content), name+"@example.test") != want {
			t.Errorf("%s is named: %v", name, !want)
		}
	}
}

// TestVerdictsHaveNames: a verdict is shown to people.
func TestVerdictsHaveNames(t *testing.T) {
	seen := make(map[string]bool)
	for v := Due; v <= NoRecipient; v++ {
		if s := v.String(); strings.HasPrefix(s, "verdict ") || seen[s] {
			t.Errorf("%d is called %q", v, s)
		} else {
			seen[s] = true
		}
	}
}
