package ledger

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const body = "Subject: one\r\n\r\nhello\r\n"

const trace = "Received: from a (b [1.2.3.4] id no)\r\n\tby c with ESMTP\r\n id Q1;\r\n\tMon, 1 Jan 2026 00:00:00 +0000\r\n"

func octetsOf(s string) Octets { return Octets{Size: int64(len(s)), SHA256: DigestOf([]byte(s))} }

func cuts(message string) *Cutter {
	var c Cutter
	for line := range strings.SplitAfterSeq(message, "\n") {
		if line != "" {
			c.Line([]byte(line), true)
		}
	}
	return &c
}

// story plays records into a ledger, for the recipient r+m1@example.test
// unless an arrival says otherwise.
type story struct {
	t *testing.T
	l *Ledger
}

const recipient = "r+m1@example.test"

func (s story) try(attempt int, results ...Result) {
	s.t.Helper()
	if err := s.l.Intent(Intent{ID: "m1", Attempt: attempt, ReversePath: "s@x.test", Recipients: []string{recipient}, Octets: octetsOf(body)}); err != nil {
		s.t.Fatal(err)
	}
	for _, r := range results {
		o := Outcome{ID: "m1", Attempt: attempt, Recipients: []string{recipient}, Result: r}
		if r == OK {
			o.QueueID = "Q1"
		}
		if err := s.l.Outcome(o); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s story) arrive(to, from, message string) {
	s.t.Helper()
	c := cuts(message)
	if err := s.l.Arrival(Arrival{Recipient: to, ReversePath: from, Cuts: c.Finish(), QueueID: c.QueueID()}); err != nil {
		s.t.Fatal(err)
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		play func(story)
		want Report
	}{
		{"delivered", func(s story) { s.try(1, OK); s.arrive(recipient, "s@x.test", trace+body) },
			Report{Accepted: 1, Delivered: 1}},
		{"domain in another case", func(s story) { s.try(1, OK); s.arrive("r+m1@EXAMPLE.test", "s@x.test", trace+body) },
			Report{Accepted: 1, Delivered: 1}},
		{"no trace at all", func(s story) { s.try(1, OK); s.arrive(recipient, "s@x.test", body) },
			Report{Accepted: 1, Delivered: 1}},
		{"two trace fields", func(s story) { s.try(1, OK); s.arrive(recipient, "s@x.test", trace+trace+body) },
			Report{Accepted: 1, Delivered: 1}},
		{"lost", func(s story) { s.try(1, OK) },
			Report{Accepted: 1, Lost: 1}},
		{"one octet differs", func(s story) {
			s.try(1, OK)
			s.arrive(recipient, "s@x.test", trace+strings.Replace(body, "hello", "hullo", 1))
		}, Report{Accepted: 1, Altered: 1}},
		{"a field in front that is no trace", func(s story) {
			s.try(1, OK)
			s.arrive(recipient, "s@x.test", trace+"X-Spam: no\r\n"+body)
		}, Report{Accepted: 1, Altered: 1}},
		{"cut short", func(s story) { s.try(1, OK); s.arrive(recipient, "s@x.test", trace+body[:len(body)-2]) },
			Report{Accepted: 1, Altered: 1}},
		{"another reverse-path", func(s story) { s.try(1, OK); s.arrive(recipient, "t@x.test", trace+body) },
			Report{Accepted: 1, Altered: 1}},
		{"altered, then intact", func(s story) {
			s.try(1, OK)
			s.arrive(recipient, "s@x.test", trace+"x"+body)
			s.arrive(recipient, "s@x.test", trace+body)
		}, Report{Accepted: 1, Delivered: 1, Altered: 1, Duplicates: 1}},
		{"two copies", func(s story) {
			s.try(1, Info)
			s.try(2, OK)
			s.arrive(recipient, "s@x.test", trace+body)
			s.arrive(recipient, "s@x.test", strings.Replace(trace, "Q1", "Q0", 1)+body)
		}, Report{Accepted: 1, Delivered: 1, Duplicates: 1}},
		{"refused and delivered", func(s story) { s.try(1, Fail); s.arrive(recipient, "s@x.test", trace+body) },
			Report{Refused: 1}},
		{"refused at one node, accepted at another", func(s story) {
			s.try(1, Fail)
			s.try(2, OK)
			s.arrive(recipient, "s@x.test", trace+body)
		}, Report{Accepted: 1, Delivered: 1}},
		{"the refused attempt arrived, too", func(s story) {
			s.try(1, Fail)
			s.try(2, OK)
			s.arrive(recipient, "s@x.test", trace+body)
			s.arrive(recipient, "s@x.test", strings.Replace(trace, "Q1", "Q0", 1)+body)
		}, Report{Accepted: 1, Delivered: 1, Duplicates: 1, Refused: 1}},
		{"arrived as what nobody was told of", func(s story) {
			s.try(1, OK)
			s.arrive(recipient, "s@x.test", strings.Replace(trace, "Q1", "Q0", 1)+body)
		}, Report{Accepted: 1, Delivered: 1, Refused: 1}},
		{"refused for good", func(s story) { s.try(1, Fail) },
			Report{NotAccepted: 1}},
		{"the sender died before it knew", func(s story) { s.try(1); s.arrive(recipient, "s@x.test", trace+body) },
			Report{Unanswered: 1, UnansweredDelivered: 1}},
		{"no reply, then refused, and arrived", func(s story) {
			s.try(1, Info)
			s.try(2, Fail)
			s.arrive(recipient, "s@x.test", trace+body)
		}, Report{Unanswered: 1, UnansweredDelivered: 1}},
		{"no reply, and did not arrive", func(s story) { s.try(1, Info) },
			Report{Unanswered: 1}},
		{"to a stranger", func(s story) { s.try(1, OK); s.arrive("other@example.test", "s@x.test", trace+body) },
			Report{Accepted: 1, Lost: 1, Unexpected: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := New()
			c.play(story{t, l})
			got := l.Check()
			if faults := got.Lost + got.Altered + got.Refused + got.Unexpected; (faults > 0) != (len(got.Cases) > 0) || got.OK() != (faults == 0) {
				t.Errorf("%d faults, OK %v, cases %q", faults, got.OK(), got.Cases)
			}
			got.Cases = nil
			if got.String() != c.want.String() || got.Refused != c.want.Refused || got.Unexpected != c.want.Unexpected ||
				got.Unanswered != c.want.Unanswered || got.UnansweredDelivered != c.want.UnansweredDelivered || got.NotAccepted != c.want.NotAccepted {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

func TestReportLine(t *testing.T) {
	got := Report{Accepted: 5, Delivered: 3, Lost: 1, Altered: 1, Duplicates: 2}.String()
	if want := "accepted=5 delivered=3 lost=1 altered=1 duplicates=2"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestCutter(t *testing.T) {
	for _, c := range []struct {
		name, message string
		want          []string // what is behind each cut
	}{
		{"empty", "", []string{""}},
		{"empty behind trace", trace, []string{trace, ""}},
		{"one dot", trace + ".\r\n", []string{trace + ".\r\n", ".\r\n"}},
		{"no header", "hello\r\n", []string{"hello\r\n"}},
		{"the sender's own trace", trace + trace + body, []string{trace + trace + body, trace + body, body}},
		{"a Received further down stays", body + trace, []string{body + trace}},
		{"not a Received field", "Received-SPF: none\r\n" + body, []string{"Received-SPF: none\r\n" + body}},
		{"case of the name", "RECEIVED: x\r\n" + body, []string{"RECEIVED: x\r\n" + body, body}},
	} {
		got := cuts(c.message).Finish()
		want := make([]Octets, len(c.want))
		for i, w := range c.want {
			want[i] = octetsOf(w)
		}
		if len(got) != len(want) {
			t.Errorf("%s: %d cuts %v, want %d", c.name, len(got), got, len(want))
			continue
		}
		for i := range got {
			if got[i] != want[i] {
				t.Errorf("%s: cut %d is %v, want %v", c.name, i, got[i], want[i])
			}
		}
	}
	if id := cuts(trace + body).QueueID(); id != "Q1" {
		t.Errorf("queue id %q, want Q1: comments do not count", id)
	}
	if id := cuts(body).QueueID(); id != "" {
		t.Errorf("queue id %q in a message without trace", id)
	}
	many := strings.Repeat("Received: x\r\n", 100)
	if n := len(cuts(many + body).Finish()); n > cutsMax+1 {
		t.Errorf("%d cuts, want at most %d", n, cutsMax+1)
	}
}

// A line longer than the reader's buffer comes in pieces, none of which may be
// taken for the beginning of a line.
func TestCutterPieces(t *testing.T) {
	var c Cutter
	c.Line([]byte("Received: a\r\n"), true)
	c.Line([]byte("x"), true)
	c.Line([]byte("Received: b"), false)
	c.Line([]byte("\r\n"), false)
	got := c.Finish()
	if len(got) != 2 || got[1] != octetsOf("xReceived: b\r\n") {
		t.Errorf("got %v", got)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "ledger.jsonl")
	l, err := Create(path, Options{Sync: true})
	if err != nil {
		t.Fatal(err)
	}
	story{t, l}.try(1, OK)
	// Each record is in the file when the call returns: a killed process
	// closes nothing.
	if data, err := os.ReadFile(path); err != nil || bytes.Count(data, []byte("\n")) != 2 {
		t.Fatalf("file holds %q (%v), want two lines", data, err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}

	l, err = Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	story{t, l}.arrive(recipient, "s@x.test", trace+body)
	if got := l.Check(); got.Delivered != 1 {
		t.Errorf("reopened: %v", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"intent":{"id":"m2"`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	l, err = Load(path)
	if err != nil {
		t.Fatalf("a torn last line: %v", err)
	}
	if got := l.Check(); got.Delivered != 1 || !got.OK() {
		t.Errorf("with a torn last line: %v", got)
	}
	l, err = Create(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	story{t, l}.try(2, OK)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err != nil {
		t.Errorf("after appending behind a torn line: %v", err)
	}
}

func TestMarker(t *testing.T) {
	a := Recipient("user", "m-0001", "example.test")
	if id, ok := MarkerOf(a); !ok || id != "m-0001" {
		t.Errorf("MarkerOf(%q) = %q, %v", a, id, ok)
	}
	for _, bad := range []string{"", "user@example.test", "user+@example.test", "no+at"} {
		if id, ok := MarkerOf(bad); ok {
			t.Errorf("MarkerOf(%q) = %q", bad, id)
		}
	}
}

// What was refused and is sent again may get the id of the first copy, so that only
// time tells which attempt it was that arrived.
func TestRefusedAndThenAccepted(t *testing.T) {
	at := func(second float64) time.Time {
		return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(second * float64(time.Second)))
	}
	attempt := func(l *Ledger, n int, second float64, r Result) {
		_ = l.Intent(Intent{ID: "m1", Attempt: n, ReversePath: "s@x.test", Recipients: []string{recipient}, Octets: octetsOf(body), At: at(second)})
		_ = l.Outcome(Outcome{ID: "m1", Attempt: n, Recipients: []string{recipient}, Result: r, QueueID: "Q1"})
	}
	c := cuts(trace + body)
	for _, one := range []struct {
		name    string
		first   Result
		arrives float64 // the second attempt is at 10.5, and accepted
		refused int
	}{
		{"before it is sent again", Fail, 10.25, 1},
		{"after that", Fail, 10.75, 0},
		{"before that, and nobody had refused it", Info, 10.25, 0},
		{"dated by its second alone", Fail, 10, 0},
		{"dated so, a second earlier", Fail, 9, 1},
	} {
		t.Run(one.name, func(t *testing.T) {
			l := New()
			attempt(l, 1, 5.5, one.first)
			attempt(l, 2, 10.5, OK)
			_ = l.Arrival(Arrival{Recipient: recipient, ReversePath: "s@x.test", Cuts: c.Finish(), QueueID: "Q1", At: at(one.arrives)})
			if got := l.Check(); got.Refused != one.refused || got.Delivered != 1 {
				t.Errorf("%+v", got)
			}
		})
	}
}
