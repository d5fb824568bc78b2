// Package absent has no control.
package absent

import "testing"

func TestAnother(*testing.T) {}
