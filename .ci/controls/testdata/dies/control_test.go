// Package dies has a control whose process dies before there is a verdict.
package dies

import (
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

func TestControlStrayCRPassed(t *testing.T) {
	trial.Run(t, controls.StrayCRPassed, func(_ *testing.T, on controls.Set) error {
		if on.Has(controls.StrayCRPassed) {
			panic("dead")
		}
		return nil
	})
}
