// Package caught has a control that is caught.
package caught

import (
	"errors"
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

func TestControlFsyncRemoved(t *testing.T) {
	trial.Run(t, controls.FsyncRemoved, func(_ *testing.T, on controls.Set) error {
		if on.Has(controls.FsyncRemoved) {
			return errors.New("seen")
		}
		return nil
	})
}
