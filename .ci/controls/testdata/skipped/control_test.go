// Package skipped has a control that is skipped with its switch on.
package skipped

import (
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

func TestControlEarlyDelete(t *testing.T) {
	trial.Run(t, controls.EarlyDelete, func(t *testing.T, on controls.Set) error {
		if on.Has(controls.EarlyDelete) {
			t.Skip("not here")
		}
		return nil
	})
}
