//go:build controls

package controls_test

import (
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

// TestParse: every switch has a name, which no other has, and package trial uses it.
func TestParse(t *testing.T) {
	all := controls.Set{}
	text := ""
	for name, one := range controls.Names {
		if all.Has(one) {
			t.Errorf("%q is another name of a switch", name)
		}
		s, err := controls.Parse(name)
		if err != nil || s != controls.Of(one) {
			t.Errorf("%q is %+v, %v", name, s, err)
		}
		if text != "" {
			text += ", "
		}
		text += name
		if all, err = controls.Parse(text); err != nil || !all.Has(one) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for one := controls.FsyncRemoved; one <= controls.CutsAll; one <<= 1 {
		if !all.Has(one) {
			t.Errorf("switch %b has no name", one)
		}
	}
	for _, c := range trial.All {
		if controls.Names[c.Name] != c.Switch {
			t.Errorf("%q is another switch here", c.Name)
		}
	}
	for _, text := range []string{"", "fsync", "fsync removed,", "Fsync removed"} {
		if s, err := controls.Parse(text); err == nil || s != (controls.Set{}) {
			t.Errorf("%q is %+v", text, s)
		}
	}
}
