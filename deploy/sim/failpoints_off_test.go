//go:build !controls

package sim

import (
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

// rulesBroken are the switches of the nodes of TestFailpoints: none, in this build.
func rulesBroken(*testing.T) controls.Set { return controls.Set{} }
