package delivery

import "time"

// A backoff is a wait that doubles from first to most.
type backoff struct {
	first, most time.Duration
	next        time.Duration
}

// grow returns the wait that is due and doubles the one after it.
func (b *backoff) grow() time.Duration {
	d := max(b.next, b.first)
	b.next = min(2*d, b.most)
	return d
}

// reset begins anew.
func (b *backoff) reset() { b.next = 0 }
