package load

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options describe a run.
type Options struct {
	// Targets are the servers. Session i talks to target i modulo their number,
	// with Rotate to the next one over each connection.
	Targets  []string
	Rotate   bool
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
	// Run stands in each Message-ID: runMax letters and digits at the most, and
	// hyphens. Seed decides sizes and octets.
	Run  string
	Seed uint64
	// Taken, if not nil, is added the octets of each message when it is accepted:
	// for who looks on while the run goes on.
	Taken *atomic.Int64
	// Dial opens a connection; nil is TCP.
	Dial func(ctx context.Context, address string) (net.Conn, error)

	pool []byte // nil: made from Seed
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

// quantiles sorts all.
func quantiles(all []time.Duration) Quantiles {
	if len(all) == 0 {
		return Quantiles{}
	}
	slices.Sort(all)
	// The smallest that so many per cent of all are not above.
	at := func(percent int) time.Duration { return all[(len(all)*percent+99)/100-1] }
	return Quantiles{P50: at(50), P99: at(99), Max: all[len(all)-1]}
}

// failurePause is how long a session waits after a failure, so that a server
// that refuses everything is not hammered.
const failurePause = 20 * time.Millisecond

// A run is one load.
type run struct {
	o       Options
	next    atomic.Int64 // messages begun
	octets  atomic.Int64
	stopped <-chan struct{}
}

// runMax keeps the header's lines short.
const runMax = 32

// Check returns an error for options with which nothing can be run.
func (o *Options) Check() error {
	if len(o.Targets) == 0 || o.Sessions < 1 || o.Duration <= 0 && o.Count <= 0 {
		return errors.New("load: targets, sessions, and a duration or a count are needed")
	}
	if !slices.Contains(AllSizes(), o.Sizes) {
		return fmt.Errorf("load: no size %q", o.Sizes)
	}
	word := func(b rune) bool {
		return 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || '0' <= b && b <= '9' || b == '-'
	}
	if strings.ContainsFunc(o.Run, func(b rune) bool { return !word(b) }) || len(o.Run) > runMax {
		return fmt.Errorf("load: run %q: use letters, digits and hyphens, %d at the most", o.Run, runMax)
	}
	return nil
}

// Run gives mail to the targets until the duration, the count or the octets are
// used up. When ctx ends, the messages under way are given up and counted
// nowhere, and Run returns what there was until then with the context's cause.
func Run(ctx context.Context, o Options) (Result, error) {
	if err := o.Check(); err != nil {
		return Result{}, err
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
	if o.pool == nil {
		o.pool = newPool(o.Seed)
	}
	r := &run{o: o, stopped: limited.Done()}
	sessions := make([]*session, o.Sessions)
	begin := time.Now()
	var running sync.WaitGroup
	for i := range sessions {
		random := rand.New(rand.NewPCG(o.Seed, uint64(i)))
		s := &session{
			run: r, target: i % len(o.Targets), rand: random, failed: make(map[int]int),
			content: content{pool: o.pool, rand: random, run: fmt.Sprintf("%s-%d", o.Run, i)},
		}
		sessions[i] = s
		running.Go(func() { s.work(ctx) })
	}
	running.Wait()
	return join(sessions, time.Since(begin)), context.Cause(ctx)
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
