package fsm

import (
	"slices"
	"strings"
	"unicode/utf8"
)

const (
	callersMax     = 16  // keys of one relay domain's callers
	userBytesMax   = 255 // of their name
	secretBytesMax = 255 // of their password, hashed
)

func (c Callers) equal(o Callers) bool {
	return slices.Equal(c.Pins, o.Pins) && c.User == o.User && c.Secret == o.Secret
}

// flaw says what makes callers malformed, or "".
func (c Callers) flaw() string {
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	switch {
	case len(c.Pins) > callersMax:
		return "too many keys of callers"
	case (c.User == "") != (c.Secret == ""):
		return "name of a caller without password, or the other way round"
	case len(c.User) > userBytesMax || !utf8.ValidString(c.User) || strings.ContainsFunc(c.User, control):
		return "malformed name of a caller"
	case len(c.Secret) > secretBytesMax || !utf8.ValidString(string(c.Secret)):
		return "malformed password of a caller"
	}
	return ""
}

// called says that the configuration has what only version 6 of commands can say.
func (d Domain) called() bool { return d.OnDemand || !d.Callers.equal(Callers{}) }

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
