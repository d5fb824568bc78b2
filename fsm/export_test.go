package fsm

import "fmt"

// Waive takes one rule of the protocol away, for the negative controls.
func (s *State) Waive(rule string) {
	switch rule {
	case "match only what lives":
		s.waived.matchAnyState = true
	case "settle":
		s.waived.neverSettle = true
	case "settle before match":
		s.waived.settleAfterMatch = true
	case "guard on expire":
		s.waived.expireUnguarded = true
	case "check at grant":
		s.waived.grantUnchecked = true
	case "fence":
		s.waived.unfenced = true
	case "hold keeps the lease":
		s.waived.holdEndsLease = true
	default:
		panic(fmt.Sprintf("no rule %q", rule))
	}
}
