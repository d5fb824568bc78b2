//go:build controls

package trial

import (
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// On returns a Set with these switches on. In a build that has none it skips the
// test, unless there is nothing to switch on.
func On(_ *testing.T, switches ...controls.Switch) controls.Set { return controls.Of(switches...) }
