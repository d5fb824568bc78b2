package sim

import (
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// PrimaryUp starts the primary.
func (w *World) PrimaryUp() error {
	w.primaryLock.Lock()
	defer w.primaryLock.Unlock()
	if w.primary != nil {
		return nil
	}
	l, err := w.network.Host(primaryName).Listen(25)
	if err != nil {
		return err
	}
	o := sink.Options{
		Hostname: "mail.example.org", Faults: w.faults, Pace: w.pace,
		Arrival: func(a ledger.Arrival) error {
			if w.arriving != nil {
				w.arriving(a)
			}
			return w.ledger.Arrival(a)
		},
	}
	if w.home != nil {
		o.Refuse = letter.IsRefusedAt
	}
	o.Refused = func(r ledger.Refusal) error {
		w.refusals.note(r.Recipient)
		if w.home == nil {
			return nil
		}
		return w.ledger.Refusal(r)
	}
	w.primary = sink.Start(l, o)
	return nil
}

// SetPace sets how long the primary thinks about each final dot.
func (w *World) SetPace(d time.Duration) {
	w.primaryLock.Lock()
	defer w.primaryLock.Unlock()
	w.pace = d
	if w.primary != nil {
		w.primary.SetPace(d)
	}
}

// PrimaryDown ends it, and reports whether it was up.
func (w *World) PrimaryDown() bool {
	w.primaryLock.Lock()
	defer w.primaryLock.Unlock()
	if w.primary == nil {
		return false
	}
	w.primary.Close()
	w.primary = nil
	return true
}
