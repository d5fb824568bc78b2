package sender

import (
	"fmt"
	"maps"
	"math/bits"
	"time"
)

// Stats counts what a run did.
type Stats struct {
	Letters     int            // transactions that ended in a 250
	Pairs       int            // recipients of those
	Octets      int64          // content of those
	Accepted    map[string]int // pairs by target
	Deferred    int            // recipients that got a 4yz, each time
	Refused     int            // recipients that got a 5yz
	NoReply     int            // recipients whose dot got no reply, each time
	Unreachable int            // connections that did not get past EHLO
	GivenUp     int            // recipients without a final answer at the end
	Dot         Latency        // of the 250 to the final dot
	Wait        Latency        // of every reply, or of the connection's end in its place
	Elapsed     time.Duration
}

func (s Stats) clone() Stats {
	s.Accepted = maps.Clone(s.Accepted)
	return s
}

// Add joins the counts of two runs, one after the other.
func (s *Stats) Add(o Stats) {
	s.Letters += o.Letters
	s.Pairs += o.Pairs
	s.Octets += o.Octets
	if s.Accepted == nil {
		s.Accepted = make(map[string]int)
	}
	for target, n := range o.Accepted {
		s.Accepted[target] += n
	}
	s.Deferred += o.Deferred
	s.Refused += o.Refused
	s.NoReply += o.NoReply
	s.Unreachable += o.Unreachable
	s.GivenUp += o.GivenUp
	s.Dot.join(o.Dot)
	s.Wait.join(o.Wait)
	s.Elapsed += o.Elapsed
}

// PerSecond is the letters accepted per second.
func (s Stats) PerSecond() float64 {
	if s.Elapsed <= 0 {
		return 0
	}
	return float64(s.Letters) / s.Elapsed.Seconds()
}

// Latency is a histogram with a relative error of about 3 %, in little memory
// however long the run.
type Latency struct {
	buckets [64 * latencySteps]int64
	count   int64
	max     time.Duration
}

// latencySteps is the number of buckets for each doubling.
const latencySteps = 16

func (l *Latency) add(d time.Duration) {
	l.buckets[bucketOf(d)]++
	l.count++
	l.max = max(l.max, d)
}

func (l *Latency) join(o Latency) {
	for i, n := range o.buckets {
		l.buckets[i] += n
	}
	l.count += o.count
	l.max = max(l.max, o.max)
}

func bucketOf(d time.Duration) int {
	v := uint64(max(d, 1))
	top := bits.Len64(v) - 1
	var step uint64
	if top >= 4 {
		step = v >> (top - 4) & (latencySteps - 1)
	} else {
		step = v << (4 - top) & (latencySteps - 1)
	}
	return top*latencySteps + int(step)
}

// bucketTop is the upper edge of a bucket.
func bucketTop(i int) time.Duration {
	top, step := i/latencySteps, float64(i%latencySteps)
	return time.Duration(float64(uint64(1)<<top) * (1 + (step+1)/latencySteps))
}

// Quantile returns the time within which the fraction q of the replies came.
func (l Latency) Quantile(q float64) time.Duration {
	rank := int64(q*float64(l.count-1)) + 1
	var seen int64
	for i, n := range l.buckets {
		if seen += n; n > 0 && seen >= rank {
			return min(bucketTop(i), l.max)
		}
	}
	return 0
}

// Max returns the longest.
func (l Latency) Max() time.Duration { return l.max }

func (l Latency) String() string {
	return fmt.Sprintf("p50=%v p99=%v max=%v", round(l.Quantile(0.5)), round(l.Quantile(0.99)), round(l.max))
}

func round(d time.Duration) time.Duration {
	switch {
	case d > 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d > 10*time.Millisecond:
		return d.Round(time.Millisecond)
	default:
		return d.Round(10 * time.Microsecond)
	}
}
