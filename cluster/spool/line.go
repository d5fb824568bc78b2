package spool

import "sync"

// A line is what waits for the writer, first come first served. Its length has
// no bound of its own: each job is a body or a list that a caller has in memory,
// and that the caller's bound counts.
type line struct {
	wake chan struct{} // capacity 1: there may be something

	mu      sync.Mutex
	waiting []*job
	closed  bool
}

func newLine() line { return line{wake: make(chan struct{}, 1)} }

// join puts j at the end. It reports false when the line is closed.
func (l *line) join(j *job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.waiting = append(l.waiting, j)
	l.nudge()
	return true
}

func (l *line) nudge() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// take takes the next batch, up to its bounds; none if nothing waits.
func (l *line) take() []*job {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for size := int64(0); n < len(l.waiting) && n < batchJobsMax && size < batchBytesMax; n++ {
		size += l.waiting[n].size()
	}
	batch := l.waiting[:n:n]
	if l.waiting = l.waiting[n:]; len(l.waiting) > 0 {
		l.nudge()
	} else {
		l.waiting = nil
	}
	return batch
}

// close lets nobody in any more, and returns who waited.
func (l *line) close() []*job {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	left := l.waiting
	l.waiting = nil
	return left
}
