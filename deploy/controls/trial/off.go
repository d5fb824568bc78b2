//go:build !controls

package trial

import (
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// On returns a Set with these switches on. In a build that has none it skips the
// test, unless there is nothing to switch on.
func On(t *testing.T, switches ...controls.Switch) controls.Set {
	t.Helper()
	if len(switches) > 0 {
		t.Skip("a negative control: it needs -tags controls")
	}
	return controls.Set{}
}
