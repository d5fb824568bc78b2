package cluster

import (
	"strings"
	"testing"
	"time"
)

// Each node has its own time of the night, and one that passes while a node is
// away is not made up for.
func TestNextScrub(t *testing.T) {
	zone := time.FixedZone("CET", 3600)
	for _, c := range []struct {
		after    string
		rank, of int
		want     string
	}{
		{"2026-05-01T00:00:00+01:00", 0, 3, "2026-05-01T01:00:00+01:00"},
		{"2026-05-01T00:00:00+01:00", 1, 3, "2026-05-01T02:20:00+01:00"},
		{"2026-05-01T00:00:00+01:00", 2, 3, "2026-05-01T03:40:00+01:00"},
		{"2026-05-01T01:00:00+01:00", 0, 3, "2026-05-02T01:00:00+01:00"},
		{"2026-05-01T23:00:00+01:00", 2, 3, "2026-05-02T03:40:00+01:00"},
		{"2026-05-31T12:00:00+01:00", 0, 1, "2026-06-01T01:00:00+01:00"},
		{"2026-05-01T00:00:00+01:00", 0, 0, "2026-05-01T01:00:00+01:00"}, // no voters known
	} {
		after, _ := time.ParseInLocation(time.RFC3339, c.after, zone)
		if got := nextScrub(after.In(zone), c.rank, c.of).Format(time.RFC3339); got != c.want {
			t.Errorf("after %s, %d of %d: %s, want %s", c.after, c.rank, c.of, got, c.want)
		}
	}
}

// A scrub finds what is damaged, has it fetched again, and says what it did.
func TestScrub(t *testing.T) {
	const messages = liveWindow + 10
	peers := &sources{holds: bothPeers}
	inLair(t, messages, peers, func(t *testing.T, l *lair) {
		for n := range messages {
			l.put(n + 1)
		}
		// Not in the last sector: a batch that is written next heals it.
		flipped := []int{2, 500, messages - 50}
		for _, n := range flipped {
			l.flip(n)
		}
		if got := l.scrubber.Start("me"); !got.Running || got.Total != messages {
			t.Errorf("%+v", got)
		}
		time.Sleep(time.Minute)
		got := l.scrubber.Report()
		if got.Running || got.Stopped || got.Bodies != messages || got.Bytes != got.TotalBytes || got.Bad != 3 || got.Repaired != 3 || got.Problem != "" || got.EndedUnix == 0 {
			t.Errorf("%+v", got)
		}
		for _, n := range flipped {
			if err := l.spool.Verify(refNumber(n)); err != nil {
				t.Errorf("body %d: %v", n, err)
			}
		}
		// No good copy anywhere: it is not held any more, and the scrub says so.
		peers.set("n2", false)
		peers.set("n3", false)
		l.flip(7)
		l.scrubber.Start("me")
		time.Sleep(time.Minute)
		if got := l.scrubber.Report(); got.Bad != 1 || got.Repaired != 0 || !strings.Contains(got.Problem, "not held") {
			t.Errorf("%+v", got)
		}
		if l.spool.Held(refNumber(7)) {
			t.Error("a damaged body counts as held")
		}
	})
}

// A scrub reads no faster than it may, and ends when it is told to.
func TestScrubIsPacedAndStopped(t *testing.T) {
	peers := &sources{holds: bothPeers}
	inLair(t, 100, peers, func(t *testing.T, l *lair) {
		for n := range 100 {
			l.put(n + 1)
		}
		l.scrubber.throttle.mu.Lock()
		l.scrubber.throttle.rate = refNumber(1).Size // one body a second
		l.scrubber.throttle.mu.Unlock()
		l.scrubber.Start("me")
		time.Sleep(30 * time.Second)
		if got := l.scrubber.Start("you"); !got.Running || got.Bodies < 25 || got.Bodies > 32 {
			t.Errorf("after 30 s, at a body a second: %+v", got)
		}
		l.scrubber.Stop("me")
		l.scrubber.Stop("me")
		time.Sleep(5 * time.Second)
		got := l.scrubber.Report()
		if got.Running || !got.Stopped || got.Bodies > 33 {
			t.Errorf("after it was stopped: %+v", got)
		}
		l.scrubber.Start("me")
		time.Sleep(2 * time.Minute)
		if got := l.scrubber.Report(); got.Running || got.Stopped || got.Bodies != 100 {
			t.Errorf("begun anew: %+v", got)
		}
	})
}

// Every night a node scrubs by itself.
func TestScrubByNight(t *testing.T) {
	peers := &sources{holds: bothPeers}
	inLair(t, 10, peers, func(t *testing.T, l *lair) {
		for n := range 10 {
			l.put(n + 1)
		}
		for night := range 3 {
			l.flip(1 + night)
			time.Sleep(24 * time.Hour)
			if got := l.scrubber.Report(); got.Bodies != 10 || got.Bad != 1 || got.Repaired != 1 {
				t.Errorf("night %d: %+v", night, got)
			}
		}
	})
}
