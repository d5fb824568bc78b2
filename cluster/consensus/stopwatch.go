package consensus

import (
	"sync/atomic"
	"time"
)

// A stopwatch knows since when the operation that it times has been running.
// It times one at a time.
type stopwatch struct{ began atomic.Pointer[time.Time] }

func (w *stopwatch) time(operation func() error) error {
	now := time.Now()
	w.began.Store(&now)
	defer w.began.Store(nil)
	return operation()
}

// over reports whether an operation has been running for longer than that.
func (w *stopwatch) over(limit time.Duration) bool {
	began := w.began.Load()
	return began != nil && time.Since(*began) > limit
}
