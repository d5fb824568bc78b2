//go:build controls

package sim

import (
	"flag"
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
)

var breaks = flag.String("break", "", "the rules that the nodes of TestFailpoints break, see controls.Parse")

// rulesBroken are the switches of the nodes of TestFailpoints.
func rulesBroken(t *testing.T) controls.Set {
	if *breaks == "" {
		return controls.Set{}
	}
	s, err := controls.Parse(*breaks)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
