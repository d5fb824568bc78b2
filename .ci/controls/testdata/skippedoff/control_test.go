// Package skippedoff has a control that is skipped with its switch off.
package skippedoff

import (
	"errors"
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

func TestControlRuleOff(t *testing.T) {
	trial.Run(t, controls.RuleOff, func(t *testing.T, on controls.Set) error {
		if !on.Has(controls.RuleOff) {
			t.Skip("not here")
		}
		return errors.New("seen")
	})
}
