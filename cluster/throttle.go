package cluster

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// throttleBurst is how much time's worth of octets may pass at once after a pause.
// Without it, small bodies would be as few as timers can be told apart.
const throttleBurst = 100 * time.Millisecond

// A throttle lets so many octets a second pass. It is safe for concurrent use.
type throttle struct {
	rate mail.ByteSize // a second

	mu   sync.Mutex
	next time.Time // when the next octets may pass
}

// wait returns when n octets may pass. One that is larger than the burst makes
// those after it wait, not itself.
func (p *throttle) wait(ctx context.Context, n mail.ByteSize) error {
	p.mu.Lock()
	now := time.Now()
	if earliest := now.Add(-throttleBurst); p.next.Before(earliest) {
		p.next = earliest
	}
	pause := p.next.Sub(now)
	p.next = p.next.Add(time.Duration(float64(n) / float64(p.rate) * float64(time.Second)))
	p.mu.Unlock()
	if pause <= 0 {
		return ctx.Err()
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rateSeconds is over how many seconds a rate is taken.
const rateSeconds = 10

// A rateMeter tells how many octets passed a second of late. The zero value is
// ready; it is not safe for concurrent use.
type rateMeter struct {
	seconds [rateSeconds]struct {
		unix   int64
		octets mail.ByteSize
	}
}

func (m *rateMeter) add(now time.Time, n mail.ByteSize) {
	s := &m.seconds[now.Unix()%rateSeconds]
	if s.unix != now.Unix() {
		s.unix, s.octets = now.Unix(), 0
	}
	s.octets += n
}

func (m *rateMeter) rate(now time.Time) mail.ByteSize {
	var sum mail.ByteSize
	for _, s := range m.seconds {
		if age := now.Unix() - s.unix; age >= 0 && age < rateSeconds {
			sum += s.octets
		}
	}
	return sum / rateSeconds
}

// A byteBudget bounds octets that are in memory at a time.
type byteBudget struct {
	max mail.ByteSize

	mu    sync.Mutex
	used  mail.ByteSize
	freed notice
}

// take waits until there is room for n octets and returns what gives it back.
// What is larger than the whole budget gets it all.
func (b *byteBudget) take(ctx context.Context, n mail.ByteSize) (release func(), err error) {
	n = min(n, b.max)
	for {
		freed := b.freed.wait()
		b.mu.Lock()
		fits := b.used+n <= b.max
		if fits {
			b.used += n
		}
		b.mu.Unlock()
		if fits {
			return func() {
				b.mu.Lock()
				b.used -= n
				b.mu.Unlock()
				b.freed.signal()
			}, nil
		}
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
