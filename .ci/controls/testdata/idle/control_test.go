// Package idle has a control whose switch does nothing.
package idle

import (
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

func TestControlEarlyReply(t *testing.T) {
	trial.Run(t, controls.EarlyReply, func(*testing.T, controls.Set) error { return nil })
}
