package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Options describe a run.
type Options struct {
	// Targets are the servers. Session i talks to target i modulo their number.
	Targets  []string
	Sessions int
	Sizes    Sizes
	// PerConnection is how many messages one connection carries; 0 is one.
	PerConnection int
	// Duration ends a run; messages under way are finished, and count. Count, if
	// not zero, ends it as well, and BytesMax.
	Duration time.Duration
	Count    int
	BytesMax int64
	// Recipient and Sender of every message.
	Recipient, Sender string
	// Run stands in each Message-ID, and Seed decides sizes and octets.
	Run  string
	Seed uint64
	// Dial opens a connection; nil is TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)
}

// A Result is what came of a run.
type Result struct {
	Accepted int           `json:"accepted"`
	Octets   int64         `json:"octets"`
	Elapsed  time.Duration `json:"elapsed_ns"`
	// Dot is how long the replies to final dots took; Session is from connect to
	// the reply to the final dot.
	Dot     Quantiles `json:"dot"`
	Session Quantiles `json:"session"`
	// Failed counts what was not accepted, by reply code, 0 for no reply.
	Failed map[int]int `json:"failed,omitempty"`
	// FirstFailure is the text of one of them.
	FirstFailure string `json:"first_failure,omitempty"`
}

// PerSecond is the accepted messages per second.
func (r Result) PerSecond() float64 { return float64(r.Accepted) / r.Elapsed.Seconds() }

// Failures is how many messages were not accepted.
func (r Result) Failures() (n int) {
	for _, k := range r.Failed {
		n += k
	}
	return n
}

func (r Result) String() string {
	s := fmt.Sprintf("%.1f messages/s, %.2f MB/s; dot %v; session %v",
		r.PerSecond(), float64(r.Octets)/1e6/r.Elapsed.Seconds(), r.Dot, r.Session)
	if n := r.Failures(); n > 0 {
		s += fmt.Sprintf("; %d FAILED %v (%s)", n, r.Failed, r.FirstFailure)
	}
	return s
}

// Quantiles are of a set of durations.
type Quantiles struct {
	P50 time.Duration `json:"p50_ns"`
	P99 time.Duration `json:"p99_ns"`
	Max time.Duration `json:"max_ns"`
}

func (q Quantiles) String() string {
	return fmt.Sprintf("p50=%v p99=%v max=%v", q.P50.Round(10*time.Microsecond), q.P99.Round(10*time.Microsecond), q.Max.Round(10*time.Microsecond))
}

func quantiles(all []time.Duration) Quantiles {
	if len(all) == 0 {
		return Quantiles{}
	}
	slices.Sort(all)
	at := func(p float64) time.Duration { return all[min(int(p*float64(len(all))), len(all)-1)] }
	return Quantiles{P50: at(0.5), P99: at(0.99), Max: all[len(all)-1]}
}

// failurePause is how long a session waits after a failure, so that a server
// that refuses everything is not hammered.
const failurePause = 20 * time.Millisecond

// A run is one load.
type run struct {
	o       Options
	pool    []byte
	next    atomic.Int64 // messages begun
	octets  atomic.Int64
	stopped <-chan struct{}
}

// Run gives mail to the targets until the duration, the count or the octets are
// used up, or ctx ends.
func Run(ctx context.Context, o Options) (Result, error) {
	if len(o.Targets) == 0 || o.Sessions < 1 || o.Duration <= 0 && o.Count <= 0 {
		return Result{}, errors.New("load: targets, sessions, and a duration or a count are needed")
	}
	if o.Dial == nil {
		d := &net.Dialer{Timeout: dialTimeout, KeepAlive: -1}
		o.Dial = func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
	}
	o.PerConnection = max(o.PerConnection, 1)
	limited := ctx
	if o.Duration > 0 {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, o.Duration)
		defer cancel()
	}
	r := &run{o: o, pool: newPool(o.Seed), stopped: limited.Done()}
	sessions := make([]*session, o.Sessions)
	begin := time.Now()
	var running sync.WaitGroup
	for i := range sessions {
		random := rand.New(rand.NewPCG(o.Seed, uint64(i)))
		s := &session{
			run: r, target: o.Targets[i%len(o.Targets)], rand: random, failed: make(map[int]int),
			content: content{pool: r.pool, rand: random, run: fmt.Sprintf("%s-%d", o.Run, i)},
		}
		sessions[i] = s
		running.Go(func() { s.work(ctx) })
	}
	running.Wait()
	return join(sessions, time.Since(begin)), nil
}

// join adds up what the sessions counted.
func join(sessions []*session, elapsed time.Duration) Result {
	result := Result{Elapsed: elapsed, Failed: make(map[int]int)}
	var dots, whole []time.Duration
	for _, s := range sessions {
		result.Accepted += len(s.dots)
		result.Octets += s.octets
		dots, whole = append(dots, s.dots...), append(whole, s.whole...)
		for code, n := range s.failed {
			result.Failed[code] += n
		}
		if result.FirstFailure == "" {
			result.FirstFailure = s.firstFailure
		}
	}
	result.Dot, result.Session = quantiles(dots), quantiles(whole)
	return result
}

// take reports whether another message of that size is to be begun.
func (r *run) take(size int) (n int, ok bool) {
	select {
	case <-r.stopped:
		return 0, false
	default:
	}
	n = int(r.next.Add(1)) - 1
	octets := r.octets.Add(int64(size))
	return n, (r.o.Count == 0 || n < r.o.Count) && (r.o.BytesMax == 0 || octets <= r.o.BytesMax)
}
