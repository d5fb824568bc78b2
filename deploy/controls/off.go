//go:build !controls

package controls

// A Set is the switches that are on: none, in this build.
type Set struct{}

// Has reports whether a switch is on.
func (Set) Has(Switch) bool { return false }
