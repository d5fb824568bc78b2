package ledger

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestPauses(t *testing.T) {
	zero := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(second int) time.Time { return zero.Add(time.Duration(second) * time.Second) }
	span := func(from, to int) Span { return Span{at(from), at(to)} }
	every := func(from, to, step int) (all []time.Time) {
		for s := from; s <= to; s += step {
			all = append(all, at(s))
		}
		return all
	}
	for _, c := range []struct {
		name    string
		outages []Outage
		stalls  []Span
		acks    []time.Time
		want    []Span
	}{
		{"mail all the time", nil, nil, every(1, 99, 5), nil},
		{"no mail, and nothing was broken", nil, nil, nil, []Span{span(0, 100)}},
		{"a pause in the middle", nil, nil, append(every(1, 31, 5), every(66, 99, 5)...), []Span{span(31, 66)}},
		{"a pause that a majority's fault explains", []Outage{{0, span(30, 70)}, {1, span(30, 60)}}, nil, append(every(1, 31, 5), every(66, 99, 5)...), nil},
		{"a pause that one node's fault does not explain", []Outage{{0, span(30, 70)}}, nil, append(every(1, 31, 5), every(66, 99, 5)...), []Span{span(31, 66)}},
		// No two were healthy for more than 30 s, though at each moment two were.
		{"faults that go round", []Outage{{0, span(10, 35)}, {1, span(35, 60)}, {2, span(60, 85)}}, nil, append(every(1, 9, 2), every(86, 99, 2)...), nil},
		{"it does not come back at the end", []Outage{{0, span(10, 50)}, {1, span(10, 50)}}, nil, every(1, 9, 2), []Span{span(50, 100)}},
		{"the observer slept in the pause", nil, []Span{span(20, 35), span(64, 70)}, append(every(1, 31, 5), every(66, 99, 5)...), nil},
		{"the observer slept too little to explain it", nil, []Span{span(20, 34), span(65, 70)}, append(every(1, 31, 5), every(67, 99, 5)...), []Span{span(31, 67)}},
		{"the observer slept at another time", nil, []Span{span(70, 99)}, append(every(1, 31, 5), every(66, 99, 5)...), []Span{span(31, 66)}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := Pauses(3, span(0, 100), c.outages, c.stalls, c.acks, 30*time.Second)
			if !slices.Equal(got, c.want) {
				t.Errorf("got  %v\nwant %v", got, c.want)
			}
		})
	}
}

func TestCheckCopies(t *testing.T) {
	never := func(Arrival, bool) bool { return false }
	again := strings.Replace(trace, "Q1", "Q0", 1)
	for _, c := range []struct {
		name        string
		play        func(story)
		interrupted Interrupted
		want        Copies
	}{
		{"one copy", func(s story) { s.try(1, OK); s.arrive(recipient, "s@x.test", trace+body) }, never, Copies{Histogram: []int{0, 1}}},
		{"a copy that nothing excuses", func(s story) {
			s.try(1, OK)
			s.arrive(recipient, "s@x.test", trace+body)
			s.arrive(recipient, "s@x.test", trace+body)
		}, never, Copies{Histogram: []int{0, 0, 1}, Extra: 1, TooMany: 1}},
		{"a dot without a reply", func(s story) {
			s.try(1, Info)
			s.try(2, OK)
			s.arrive(recipient, "s@x.test", again+body)
			s.arrive(recipient, "s@x.test", trace+body)
		}, never, Copies{Histogram: []int{0, 0, 1}, Extra: 1, Bound: 1}},
		{"a dot without a reply, and twice the same message", func(s story) {
			s.try(1, Info)
			s.try(2, OK)
			s.arrive(recipient, "s@x.test", trace+body)
			s.arrive(recipient, "s@x.test", trace+body)
		}, never, Copies{Histogram: []int{0, 0, 1}, Extra: 1, Bound: 1, TooMany: 1}},
		{"two messages of one dot", func(s story) {
			s.try(1, OK)
			s.arrive(recipient, "s@x.test", again+body)
			s.arrive(recipient, "s@x.test", trace+body)
		}, func(_ Arrival, last bool) bool { return !last }, Copies{Histogram: []int{0, 0, 1}, Extra: 1, TooMany: 1}},
		{"a 250 that nobody may have read", func(s story) {
			s.try(1, OK)
			s.arrive(recipient, "s@x.test", trace+body)
			if err := s.l.Unread(Unread{Recipient: recipient, QueueID: "Q1"}); err != nil {
				s.t.Fatal(err)
			}
			s.arrive(recipient, "s@x.test", trace+body)
		}, never, Copies{Histogram: []int{0, 0, 1}, Extra: 1, Bound: 1}},
		{"the 250 to the second copy that nobody may have read", func(s story) {
			for n := range 2 {
				c := cuts(trace + body)
				if err := s.l.Arrival(Arrival{Recipient: recipient, ReversePath: "s@x.test", Cuts: c.Finish(), QueueID: "Q1", At: time.Unix(int64(n), 0)}); err != nil {
					s.t.Fatal(err)
				}
			}
			if err := s.l.Unread(Unread{Recipient: recipient, QueueID: "Q1", Arrived: time.Unix(1, 0)}); err != nil {
				s.t.Fatal(err)
			}
			s.try(1, OK)
		}, never, Copies{Histogram: []int{0, 0, 1}, Extra: 1, TooMany: 1}},
		{"one excuse, two copies too many", func(s story) {
			s.try(1, Info)
			s.try(2, OK)
			for range 3 {
				s.arrive(recipient, "s@x.test", trace+body)
			}
			if err := s.l.Unread(Unread{Recipient: recipient, QueueID: "Q1", Arrived: time.Unix(5, 0)}); err != nil {
				s.t.Fatal(err)
			}
		}, never, Copies{Histogram: []int{0, 0, 0, 1}, Extra: 2, Bound: 1, TooMany: 1}},
		{"two causes of one copy, two copies too many", func(s story) {
			s.try(1, OK)
			for n := range 3 {
				c := cuts(trace + body)
				if err := s.l.Arrival(Arrival{Recipient: recipient, ReversePath: "s@x.test", Cuts: c.Finish(), QueueID: "Q1", At: time.Unix(int64(n), 0)}); err != nil {
					s.t.Fatal(err)
				}
			}
			if err := s.l.Unread(Unread{Recipient: recipient, QueueID: "Q1", Arrived: time.Unix(0, 0)}); err != nil {
				s.t.Fatal(err)
			}
		}, func(a Arrival, _ bool) bool { return a.At.Equal(time.Unix(0, 0)) }, Copies{Histogram: []int{0, 0, 0, 1}, Extra: 2, Bound: 1, TooMany: 1}},
		{"interrupted", func(s story) {
			s.try(1, OK)
			s.arrive(recipient, "s@x.test", trace+body)
			s.arrive(recipient, "s@x.test", trace+body)
		}, func(_ Arrival, last bool) bool { return !last }, Copies{Histogram: []int{0, 0, 1}, Extra: 1, Bound: 1}},
		{"late", func(s story) {
			s.try(1, OK)
			s.arrive(recipient, "s@x.test", trace+body)
			s.arrive(recipient, "s@x.test", trace+body)
		}, func(_ Arrival, last bool) bool { return last }, Copies{Histogram: []int{0, 0, 1}, Extra: 1, Bound: 1}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := New()
			c.play(story{t, l})
			got := l.CheckCopies(c.interrupted)
			if (got.TooMany > 0) != (len(got.Cases) > 0) {
				t.Errorf("cases %q of %d", got.Cases, got.TooMany)
			}
			if !slices.Equal(got.Histogram, c.want.Histogram) || got.Extra != c.want.Extra || got.Bound != c.want.Bound || got.TooMany != c.want.TooMany {
				t.Errorf("got  %+v\nwant %+v", got, c.want)
			}
		})
	}
}

// One dot brings all recipients of a domain; what shows no queue id is not told apart.
func TestCopiesAgain(t *testing.T) {
	for _, c := range []struct {
		name     string
		arrivals []Arrival
		want     int
	}{
		{"nothing came again", []Arrival{{Recipient: "a+m1@x.test", QueueID: "Q1"}, {Recipient: "b+m1@x.test", QueueID: "Q1"}}, 0},
		{"one dot, two recipients", []Arrival{
			{Recipient: "a+m1@x.test", QueueID: "Q1"}, {Recipient: "b+m1@X.test", QueueID: "Q1"},
			{Recipient: "a+m1@x.test", QueueID: "Q1"}, {Recipient: "b+m1@X.test", QueueID: "Q1"},
		}, 1},
		{"two domains", []Arrival{
			{Recipient: "a+m1@x.test", QueueID: "Q1"}, {Recipient: "b+m1@y.test", QueueID: "Q1"},
			{Recipient: "a+m1@x.test", QueueID: "Q1"}, {Recipient: "b+m1@y.test", QueueID: "Q1"},
		}, 2},
		{"another message", []Arrival{{Recipient: "a+m1@x.test", QueueID: "Q1"}, {Recipient: "a+m1@x.test", QueueID: "Q2"}}, 0},
		{"no queue id", []Arrival{{Recipient: "a+m1@x.test"}, {Recipient: "a+m1@x.test"}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := New()
			for _, a := range c.arrivals {
				if err := l.Arrival(a); err != nil {
					t.Fatal(err)
				}
			}
			if got := l.CheckCopies(func(Arrival, bool) bool { return false }).Again; got != c.want {
				t.Errorf("%d, want %d", got, c.want)
			}
		})
	}
}
