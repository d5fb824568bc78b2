//go:build controls

package controls

// A Set is the switches that are on. The zero Set is the product.
type Set struct{ on Switch }

// Of returns a Set with these switches on.
func Of(on ...Switch) Set {
	var s Set
	for _, one := range on {
		s.on |= one
	}
	return s
}

// Has reports whether a switch is on.
func (s Set) Has(one Switch) bool { return s.on&one != 0 }
