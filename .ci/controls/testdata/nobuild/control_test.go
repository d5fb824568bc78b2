// Package nobuild has a control that cannot be built.
package nobuild

import "testing"

func TestControlUnknownRefused(t *testing.T) { thisIsNowhere(t) }
