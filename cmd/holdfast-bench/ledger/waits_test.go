package ledger

import (
	"testing"
	"time"
)

func TestLate(t *testing.T) {
	zero := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	span := func(from, to int) Span {
		return Span{zero.Add(time.Duration(from) * time.Second), zero.Add(time.Duration(to) * time.Second)}
	}
	for _, c := range []struct {
		name string
		wait Span
		away []Span
		late bool
	}{
		{"at once", span(0, 0), nil, false},
		{"just in time", span(0, 25), nil, false},
		{"a second too late", span(0, 26), nil, true},
		{"too late, and something was wrong before and after", span(10, 36), []Span{span(0, 10), span(36, 60)}, true},
		{"the server was stopped for five seconds", span(0, 30), []Span{span(10, 15)}, false},
		{"that explains ten seconds, not eleven", span(0, 36), []Span{span(10, 15)}, true},
		{"stopped already when the wait began", span(10, 38), []Span{span(0, 12)}, false},
		{"twice, each for a while", span(0, 33), []Span{span(1, 3), span(20, 22)}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := Wait{Target: "a", For: "dot", Span: c.wait, End: "250"}
			got := Late([]Wait{w}, 25*time.Second, func(target string) []Span {
				if target != "a" {
					t.Errorf("asked about %q", target)
				}
				return c.away
			})
			if (len(got) > 0) != c.late {
				t.Errorf("late: %v", got)
			}
		})
	}
}
