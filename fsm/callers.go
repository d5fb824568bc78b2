package fsm

import "slices"

// callersMax bounds the keys of one relay domain's callers.
const callersMax = 16

func (c Callers) equal(o Callers) bool { return slices.Equal(c.Pins, o.Pins) }

// flaw says what makes callers malformed, or "".
func (c Callers) flaw() string {
	if len(c.Pins) > callersMax {
		return "too many keys of callers"
	}
	return ""
}

// called says that the configuration has what only version 6 of commands can say.
func (d Domain) called() bool { return !d.Callers.equal(Callers{}) }

// CallersHaveKeys reports whether a relay domain knows callers by their keys.
func (s *State) CallersHaveKeys() bool {
	for d := range s.domains.all() {
		if len(d.config.Callers.Pins) > 0 {
			return true
		}
	}
	return false
}

// called reports whether the State has what only version 7 of snapshots can say.
func (s *State) called() bool {
	for d := range s.domains.all() {
		if d.config.called() {
			return true
		}
	}
	return false
}
