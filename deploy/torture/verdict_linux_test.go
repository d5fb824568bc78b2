package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// story makes a run in which node-1 led all the time and nodes were harmed as told.
func story(harms ...ledger.Harm) (*run, time.Time) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	d := newDiary(io.Discard, begin)
	d.harms = harms
	d.leads = []entry{{what: "node-1", from: begin, to: begin.Add(time.Hour)}}
	return &run{diary: d, begin: begin, cast: &cast{fleet: &fleet.Fleet{Nodes: []*fleet.Node{{Name: "node-1"}, {Name: "node-2"}, {Name: "node-3"}}}}}, begin
}

func harm(node, from, to int) ledger.Harm {
	at := func(s int) time.Time {
		return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(s) * time.Second)
	}
	return ledger.Harm{Node: node, Span: ledger.Span{From: at(from), To: at(to)}}
}

// A copy is excused by what happened to who delivered it, to who led, or to a
// majority, and by nothing else.
func TestInterrupted(t *testing.T) {
	for _, c := range []struct {
		name  string
		harms []ledger.Harm
		want  bool
	}{
		{"nothing", nil, false},
		{"its node, at once", []ledger.Harm{harm(1, 101, 110)}, true},
		{"its node, when the lease had ended", []ledger.Harm{harm(1, 106, 110)}, false},
		{"its node, long before", []ledger.Harm{harm(1, 10, 20)}, false},
		{"who led", []ledger.Harm{harm(0, 101, 110)}, true},
		{"one that has nothing to do with it", []ledger.Harm{harm(2, 101, 110)}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, begin := story(c.harms...)
			a := ledger.Arrival{Peer: addressNode(1).String() + ":4711", At: begin.Add(100 * time.Second)}
			if got := r.interrupted(a); got != c.want {
				t.Errorf("interrupted: %v, want %v", got, c.want)
			}
		})
	}
	r, begin := story(harm(1, 101, 110), harm(2, 101, 110))
	r.diary.leads = []entry{{what: "node-1", from: begin, to: begin.Add(time.Hour)}}
	if !r.interrupted(ledger.Arrival{Peer: addressNode(0).String() + ":4711", At: begin.Add(100 * time.Second)}) {
		t.Error("without a majority nothing is recorded, and yet it is not interrupted")
	}
}

// A reply that comes too late breaks L5, unless it is the fault of who waited, or of
// what was done to the way between.
func TestLateReplies(t *testing.T) {
	span := func(from, to int) ledger.Span { return harm(0, from, to).Span }
	for _, c := range []struct {
		name     string
		waited   ledger.Span
		silences []ledger.Harm
		stalls   []ledger.Span
		late     int
	}{
		{"in time", span(100, 125), nil, nil, 0},
		{"too late", span(100, 126), nil, nil, 1},
		{"the node was stopped", span(100, 130), []ledger.Harm{harm(1, 101, 108)}, nil, 0},
		{"another node was stopped", span(100, 130), []ledger.Harm{harm(0, 101, 108)}, nil, 1},
		{"the harness stood still", span(100, 130), nil, []ledger.Span{span(104, 120)}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := story()
			for i, n := range r.cast.fleet.Nodes {
				n.SMTP = addressNode(i).String() + ":2525"
			}
			r.diary.silences, r.diary.stalls = c.silences, c.stalls
			r.load = new(load)
			r.load.waited(ledger.Wait{Target: r.cast.fleet.Nodes[1].SMTP, For: "the final dot", Span: c.waited, End: "250"})
			if got := r.load.late(r.away); len(got) != c.late {
				t.Errorf("late: %v", got)
			}
		})
	}
}

// Each law has something that breaks it, and beside that what looks much the same and
// does not.
func TestWeigh(t *testing.T) {
	const sender, recipient, content = "s@sender.test", "r+m1@example.test", "Subject: one\r\n\r\nhello\r\n"
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(second float64) time.Time { return begin.Add(time.Duration(second * float64(time.Second))) }
	span := func(from, to int) ledger.Span { return harm(0, from, to).Span }
	sent := func(b *ledger.Ledger, attempt int, second float64, result ledger.Result) {
		octets := ledger.Octets{Size: int64(len(content)), SHA256: ledger.DigestOf([]byte(content))}
		_ = b.Intent(ledger.Intent{ID: "m1", Attempt: attempt, ReversePath: sender, Recipients: []string{recipient}, Octets: octets, At: at(second)})
		_ = b.Outcome(ledger.Outcome{ID: "m1", Attempt: attempt, Recipients: []string{recipient}, Result: result, QueueID: "Q1"})
	}
	arrivedAs := func(b *ledger.Ledger, to, content string, second float64) {
		var c ledger.Cutter
		for line := range strings.SplitAfterSeq(content, "\n") {
			c.Line([]byte(line), true)
		}
		_ = b.Arrival(ledger.Arrival{Recipient: to, ReversePath: sender, Cuts: c.Finish(), QueueID: "Q1", Peer: addressNode(1).String() + ":4711", At: at(second)})
	}
	arrived := func(b *ledger.Ledger, second float64) { arrivedAs(b, recipient, content, second) }
	refused := func(b *ledger.Ledger) { _ = b.Refusal(ledger.Refusal{Recipient: recipient, At: at(11)}) }
	told := func(b *ledger.Ledger) {
		_ = b.Notice(ledger.Notice{Recipient: recipient, Action: "failed", To: sender, QueueID: "R1", At: at(12)})
	}
	silence := func(r *run, from, to int) { // no 250s meanwhile
		r.diary.taken = slices.DeleteFunc(r.diary.taken, func(a time.Time) bool { return a.After(at(float64(from))) && a.Before(at(float64(to))) })
	}
	for _, c := range []struct {
		name string
		play func(r *run, b *ledger.Ledger, strangers map[string]int)
		law  string // that is broken, "" for none
	}{
		{"it arrives", func(_ *run, b *ledger.Ledger, _ map[string]int) { sent(b, 1, 10, ledger.OK); arrived(b, 10.5) }, ""},
		{"it never arrives", func(_ *run, b *ledger.Ledger, _ map[string]int) { sent(b, 1, 10, ledger.OK) }, "L1"},
		{"it is held", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			_ = b.Held(ledger.Held{Recipient: recipient})
		}, ""},
		{"it arrives with another octet", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrivedAs(b, recipient, strings.Replace(content, "hello", "hullo", 1), 10.5)
		}, "L2"},
		{"it arrives behind a Received field", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrivedAs(b, recipient, "Received: by n1.test id Q1;\r\n\tMon, 1 Jan 2026 00:00:00 +0000\r\n"+content, 10.5)
		}, ""},
		{"the primary is spoken to as nobody should", func(r *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			r.cast.strict = 1
		}, "L2"},
		{"it arrives twice", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			arrived(b, 20)
		}, "L3"},
		{"it arrives twice, and its node was killed behind the first", func(r *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			arrived(b, 20)
			r.diary.harms = []ledger.Harm{harm(1, 11, 14)}
		}, ""},
		{"what nobody sent arrives", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			arrivedAs(b, "victim@elsewhere.test", content, 11)
		}, "L4"},
		{"a node speaks to a stranger", func(_ *run, b *ledger.Ledger, strangers map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			strangers["10.77.0.99:25"] = 1
		}, "L4"},
		{"a node looks for its resolver", func(_ *run, b *ledger.Ledger, strangers map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			strangers[addressNobody+":53"] = 1
		}, ""},
		{"it was refused, and arrives before it is sent again", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 9, ledger.Fail)
			arrived(b, 9.5)
			sent(b, 2, 10, ledger.OK)
		}, "L5"},
		{"it was refused, and arrives when it was sent again", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 9, ledger.Fail)
			sent(b, 2, 10, ledger.OK)
			arrived(b, 10.5)
		}, ""},
		{"a client waits too long", func(r *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			r.load.waited(ledger.Wait{Target: r.cast.fleet.Nodes[1].SMTP, For: "the final dot", Span: span(30, 56)})
		}, "L5"},
		{"a client waits as long as it has to", func(r *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			r.load.waited(ledger.Wait{Target: r.cast.fleet.Nodes[1].SMTP, For: "the final dot", Span: span(30, 50)})
		}, ""},
		{"no 250 for 40 s", func(r *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			silence(r, 40, 80)
		}, "L8"},
		{"no 250 for 40 s, and two nodes are down", func(r *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			silence(r, 40, 80)
			r.diary.harms = []ledger.Harm{harm(1, 41, 72), harm(2, 41, 72)}
		}, ""},
		{"no 250 for 40 s, of which the harness slept 12", func(r *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			silence(r, 40, 80)
			r.diary.stalls = []ledger.Span{span(50, 62)}
		}, ""},
		{"nothing is accepted", func(_ *run, b *ledger.Ledger, _ map[string]int) { sent(b, 1, 10, ledger.Fail) }, "L8"},
		{"it is refused for good, and its sender is not told", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			refused(b)
			_ = b.Held(ledger.Held{Recipient: recipient})
		}, "L9"},
		{"it is refused for good, and its sender is told", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			refused(b)
			told(b)
		}, ""},
		{"it arrives, and its sender is told that it failed", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			told(b)
		}, "L9"},
		{"its sender is told twice", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			refused(b)
			told(b)
			told(b)
		}, "L9"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, _ := story()
			for i, n := range r.cast.fleet.Nodes {
				n.SMTP = addressNode(i).String() + ":2525"
			}
			r.o.nodes, r.spans, r.load = 3, span(0, 100), new(load)
			for s := range 100 {
				r.diary.taken = append(r.diary.taken, at(float64(s)))
			}
			book, strangers := ledger.New(), map[string]int{}
			book.Tell(domains()...)
			c.play(r, book, strangers)
			v, broken := r.weigh(book, strangers), r.diary.breaches()
			if c.law == "" && len(broken) > 0 {
				t.Errorf("broken: %q", broken)
			}
			if c.law != "" && (len(broken) != 1 || !strings.HasPrefix(broken[0], c.law+":")) {
				t.Errorf("%v: broken: %q, want one of %s", v, broken, c.law)
			}
		})
	}
}

// A node may have some more files open than at its beginning, and not more and more.
func TestLeaked(t *testing.T) {
	if err := leaked(30, 30+descriptorsMore); err != nil {
		t.Error(err)
	}
	if leaked(30, 31+descriptorsMore) == nil {
		t.Error("one file for each message would be kept open")
	}
}

// Who says twice that it leads is no rival of itself.
func TestRival(t *testing.T) {
	leaders := reigns{}
	for _, c := range []struct {
		term  uint64
		node  string
		rival string
	}{{2, "node-1", ""}, {2, "node-1", ""}, {3, "node-2", ""}, {2, "node-2", "node-1"}, {4, "node-1", ""}} {
		if got := leaders.rival(c.term, c.node); got != c.rival {
			t.Errorf("%s in term %d: rival %q, want %q", c.node, c.term, got, c.rival)
		}
	}
}

// The senders of one domain at least are told, and each policy comes with some seed.
func TestPolicies(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(6) {
		all := policies(seed)
		if len(all) != len(domains()) || all[domains()[0]] != tellAll || !slices.Contains(telling(all), domains()[0]) {
			t.Errorf("seed %d: %v", seed, all)
		}
		for _, policy := range all {
			seen[policy] = true
		}
	}
	if len(seen) != 3 {
		t.Errorf("policies %v", seen)
	}
}

// Reports are noted as what they tell, and what is no report is a breach.
func TestToldSenders(t *testing.T) {
	r, begin := story()
	r.cast.diary, r.cast.arrived, r.cast.book = r.diary, ledger.New(), ledger.New()
	book := r.cast.book
	book.Tell(domains()...)
	const recipient = "nobody+m1@example.test"
	_ = book.Intent(ledger.Intent{ID: "m1", Attempt: 1, ReversePath: "", Recipients: []string{recipient}})
	_ = book.Outcome(ledger.Outcome{ID: "m1", Attempt: 1, Recipients: []string{recipient}, Result: ledger.OK, QueueID: "Q1"})
	_ = r.cast.refused(ledger.Refusal{Recipient: recipient})
	report := "Content-Type: multipart/report; report-type=delivery-status; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n" +
		"Reporting-MTA: dns; n1.test\r\n\r\nFinal-Recipient: rfc822; " + recipient + "\r\nAction: failed\r\n\r\n--b--\r\n"
	for _, content := range []string{report, "Subject: an offer\r\n\r\nbuy\r\n"} {
		if err := r.cast.told(sink.Message{Recipients: []string{"s@sender.test"}, Content: []byte(content), At: begin}); err != nil {
			t.Fatal(err)
		}
	}
	if got := book.CheckNotices(r.interrupted); got.Undue != 1 || got.Silent != 1 {
		t.Errorf("a report about mail that has no sender: %+v", got)
	}
	if got := r.diary.breaches(); len(got) != 1 || !strings.HasPrefix(got[0], "L9") {
		t.Errorf("mail that is no report: %q", got)
	}
}

// The timeline shows what happened.
func TestTimeline(t *testing.T) {
	d := newDiary(io.Discard, time.Now())
	d.fault("power loss")()
	d.accepted(3)
	d.arrived()
	d.leader("node-2")
	got := (&run{diary: d}).timeline()
	for _, want := range []string{"<svg", "power loss", "node-2", "polyline", "(3 at most)"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %s", want, got)
		}
	}
}

// How to repeat a run is a command that makes the same one.
func TestAgain(t *testing.T) {
	o, err := parse([]string{"-seed", "7", "-minutes", "0.5", "-only", "kill,power loss"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := o.again(), "make torture SEED=7 MINUTES=0.5 ONLY='kill,power loss'"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	o, err = parse([]string{"-seed", "7", "-minutes", "2", "-nodes", "5", "-peer", "exim:primary"})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := o.again(), "make torture SEED=7 MINUTES=2 NODES=5 PEER=exim:primary"; got != want || o.nodes != 5 {
		t.Errorf("got %q, want %q", got, want)
	}
	for _, bad := range [][]string{{"-nodes", "4"}, {"-peer", "sendmail"}, {"-only", "earthquake"}, {"-minutes", "0"}, {"-minutes", "90"}, {"more"}} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%v was taken", bad)
		}
	}
}

func TestTermsLed(t *testing.T) {
	line := func(node string, term int) string {
		return fmt.Sprintf("time=2026-01-01T00:00:00Z level=INFO msg=leading node=%s room=cluster term=%d\n", node, term)
	}
	logs := map[string][]byte{
		"node-1": []byte(line("node-1", 2) + "msg=other term=3\n" + line("node-1", 12)),
		"node-2": []byte(line("node-2", 3)),
	}
	if terms, twice := termsLed(logs); terms != 3 || len(twice) != 0 {
		t.Errorf("%d, %q", terms, twice)
	}
	logs["node-2"] = append(logs["node-2"], line("node-2", 12)...)
	if _, twice := termsLed(logs); len(twice) != 1 || twice[0] != "term 12 was led by node-1 and node-2" {
		t.Errorf("%q", twice)
	}
}
