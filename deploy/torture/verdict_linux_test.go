package main

import (
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// story makes a run in which node-1 led all the time and nodes had outages as told.
func story(outages ...ledger.Outage) (*run, time.Time) {
	begin := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	d := newDiary(io.Discard, begin)
	d.outages = outages
	d.leads = []entry{{what: "node-1", from: begin, to: begin.Add(time.Hour)}}
	return &run{diary: d, begin: begin, cast: &cast{fleet: &fleet.Fleet{Nodes: []*fleet.Node{{Name: "node-1"}, {Name: "node-2"}, {Name: "node-3"}}}}}, begin
}

func outage(node, from, to int) ledger.Outage {
	at := func(s int) time.Time {
		return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(s) * time.Second)
	}
	return ledger.Outage{Node: node, Span: ledger.Span{From: at(from), To: at(to)}}
}

// A copy is excused by what happened to who delivered it, to who led, or to a
// majority, and by nothing else.
func TestInterrupted(t *testing.T) {
	for _, c := range []struct {
		name    string
		outages []ledger.Outage
		want    bool // of a copy behind which another came
		last    bool // of the last
	}{
		{"nothing", nil, false, false},
		{"its node, at once", []ledger.Outage{outage(1, 101, 110)}, true, false},
		{"its node, when the lease had ended", []ledger.Outage{outage(1, 106, 110)}, false, false},
		{"its node, until now", []ledger.Outage{outage(1, 10, 100)}, true, true},
		{"its node, until some seconds before", []ledger.Outage{outage(1, 10, 95)}, false, true},
		{"its node, long before", []ledger.Outage{outage(1, 10, 20)}, false, false},
		{"who led", []ledger.Outage{outage(0, 101, 110)}, true, false},
		{"who led, until now", []ledger.Outage{outage(0, 10, 100)}, true, false},
		{"one that has nothing to do with it", []ledger.Outage{outage(2, 101, 110)}, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, begin := story(c.outages...)
			a := ledger.Arrival{Peer: addressNode(1).String() + ":4711", At: begin.Add(100 * time.Second)}
			if got, last := r.interrupted(a, false), r.interrupted(a, true); got != c.want || last != c.last {
				t.Errorf("interrupted: %v and, where it is the last, %v, want %v and %v", got, last, c.want, c.last)
			}
		})
	}
	r, begin := story(outage(1, 101, 110), outage(2, 101, 110))
	r.diary.leads = []entry{{what: "node-1", from: begin, to: begin.Add(time.Hour)}}
	if !r.interrupted(ledger.Arrival{Peer: addressNode(0).String() + ":4711", At: begin.Add(100 * time.Second)}, false) {
		t.Error("without a majority nothing is recorded, and yet it is not interrupted")
	}
}

// A reply that comes too late breaks L5, unless it is the fault of who waited, or of
// what was done to the way between.
func TestLateReplies(t *testing.T) {
	span := func(from, to int) ledger.Span { return outage(0, from, to).Span }
	for _, c := range []struct {
		name     string
		waited   ledger.Span
		silences map[int][]ledger.Span
		stalls   []ledger.Span
		late     int
	}{
		{"in time", span(100, 125), nil, nil, 0},
		{"too late", span(100, 126), nil, nil, 1},
		{"the node was stopped", span(100, 130), map[int][]ledger.Span{1: {span(101, 108)}}, nil, 0},
		{"another node was stopped", span(100, 130), map[int][]ledger.Span{0: {span(101, 108)}}, nil, 1},
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
	span := func(from, to int) ledger.Span { return outage(0, from, to).Span }
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
		r.diary.acks = slices.DeleteFunc(r.diary.acks, func(a time.Time) bool { return a.After(at(float64(from))) && a.Before(at(float64(to))) })
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
			r.diary.outages = []ledger.Outage{outage(1, 11, 14)}
		}, ""},
		{"it arrives twice, its node was killed behind the first, and no doubt was counted", func(r *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			arrived(b, 20)
			r.diary.outages, r.doubts = []ledger.Outage{outage(1, 11, 14)}, new(int)
		}, "L3"},
		{"it arrives twice, its node was killed behind the first, and a doubt was counted", func(r *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			arrived(b, 20)
			doubts := 1
			r.diary.outages, r.doubts = []ledger.Outage{outage(1, 11, 14)}, &doubts
		}, ""},
		{"it arrives with a NOTIFY that it was not sent with", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			never := "NEVER"
			octets := []ledger.Octets{{Size: int64(len(content)), SHA256: ledger.DigestOf([]byte(content))}}
			_ = b.Arrival(ledger.Arrival{Recipient: recipient, ReversePath: sender, Cuts: octets, Notify: &never, QueueID: "Q1", At: at(10.5)})
		}, "L2"},
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
			r.diary.outages = []ledger.Outage{outage(1, 41, 72), outage(2, 41, 72)}
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
		{"its sender is told that it failed, and it arrives", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			refused(b)
			told(b)
			arrived(b, 30)
		}, "L9"},
		{"it arrives, and it is held", func(_ *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			refused(b)
			_ = b.Held(ledger.Held{Recipient: recipient})
		}, "L9"},
		{"it arrives, its node is killed, and what comes again is refused and told", func(r *run, b *ledger.Ledger, _ map[string]int) {
			sent(b, 1, 10, ledger.OK)
			arrived(b, 10.5)
			r.diary.outages = []ledger.Outage{outage(1, 11, 14)}
			refused(b)
			told(b)
		}, ""},
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
			r.o.nodes, r.offered, r.load = 3, span(0, 100), new(load)
			for s := range 100 {
				r.diary.acks = append(r.diary.acks, at(float64(s)))
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
