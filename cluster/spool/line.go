package spool

import (
	"sync"
	"time"
)

// A line is what waits for the writer, first come first served. Its length has
// no bound of its own: each job is a body or a list that a caller has in memory,
// and that the caller's bound counts.
//
// A job that is patient is one that nobody waits for yet. Where several came
// together last time it does not wake the writer by itself: what comes meanwhile
// shares its sync. It is written with the first job that is not patient, when
// somebody hastens the line, when patientBytesMax wait, or after patience.
type line struct {
	wake chan struct{} // capacity 1: there may be something

	mu      sync.Mutex
	waiting []*job
	bytes   int64 // of what waits
	crowded bool  // the last batch had several jobs
	late    *time.Timer
	closed  bool
}

const (
	// patience is long beside the time until an entry names a body that was given
	// to the writer, which then hastens it.
	patience = 10 * time.Millisecond
	// patientBytesMax: more than this costs the disk more than a sync does.
	patientBytesMax = 128 << 10
)

func newLine() *line {
	l := &line{wake: make(chan struct{}, 1)}
	l.late = time.AfterFunc(patience, l.nudge)
	l.late.Stop()
	return l
}

// join puts j at the end. It reports false when the line is closed.
func (l *line) join(j *job) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.waiting = append(l.waiting, j)
	l.bytes += j.size()
	switch {
	case !j.patient || !l.crowded || l.bytes > patientBytesMax:
		l.nudge()
	case len(l.waiting) == 1:
		l.late.Reset(patience)
	}
	return true
}

// hasten has the writer take what waits now.
func (l *line) hasten() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.waiting) > 0 {
		l.nudge()
	}
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
	n, size := 0, int64(0)
	for ; n < len(l.waiting) && n < batchJobsMax && size < batchBytesMax; n++ {
		size += l.waiting[n].size()
	}
	if n == 0 {
		return nil
	}
	batch := l.waiting[:n:n]
	l.bytes -= size
	l.crowded = n > 1
	if l.waiting = l.waiting[n:]; len(l.waiting) > 0 {
		l.nudge()
	} else {
		l.waiting = nil
		l.late.Stop()
	}
	return batch
}

// close lets nobody in any more, and returns who waited.
func (l *line) close() []*job {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.late.Stop()
	left := l.waiting
	l.waiting = nil
	return left
}
