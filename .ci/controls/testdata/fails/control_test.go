// Package fails has a control whose script fails with the switch off, too.
package fails

import (
	"errors"
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

func TestControlHeartbeatFastPath(t *testing.T) {
	trial.Run(t, controls.HeartbeatFastPath, func(*testing.T, controls.Set) error { return errors.New("always") })
}
