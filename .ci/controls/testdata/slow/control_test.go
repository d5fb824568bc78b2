// Package slow has a control that takes half a second of a processor.
package slow

import (
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

func TestControlChecksumUnchecked(t *testing.T) {
	trial.Run(t, controls.ChecksumUnchecked, func(t *testing.T, on controls.Set) error {
		if !on.Has(controls.ChecksumUnchecked) {
			return nil
		}
		var used unix.Rusage
		for time.Duration(used.Utime.Nano()) < 500*time.Millisecond {
			if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
				t.Fatal(err)
			}
		}
		return errors.New("seen")
	})
}
