package fsm

import (
	"strings"
	"unicode/utf8"
)

// WaitsPerEntry is what a leader sets Settings.WaitsPerEntry to, when every voter
// can apply it: with a million waiting messages an entry that ended all waits
// would stop everything else for seconds, and this many take some ten
// milliseconds. Those who then deliver need three entries for 64 messages, so the
// waits end faster than anybody can use it.
const WaitsPerEntry = 2000

// DefaultSettings are the settings of a new cluster.
func DefaultSettings() Settings {
	return Settings{
		DoubtWait:       10 * minute,
		FingerprintLife: 24 * hour,
		FingerprintMax:  100_000,
		RecordLife:      25 * hour,
		RetryMin:        minute,
		RetryMax:        30 * minute,
		Voters:          3,
	}
}

// WithDefaults returns the settings with the default in each field that is
// zero.
func (v Settings) WithDefaults() Settings {
	d := DefaultSettings()
	orMillis(&v.DoubtWait, d.DoubtWait)
	orMillis(&v.FingerprintLife, d.FingerprintLife)
	orMillis(&v.RecordLife, d.RecordLife)
	orMillis(&v.RetryMin, d.RetryMin)
	orMillis(&v.RetryMax, d.RetryMax)
	if v.FingerprintMax == 0 {
		v.FingerprintMax = d.FingerprintMax
	}
	if v.Voters == 0 {
		v.Voters = d.Voters
	}
	return v
}

func orMillis(m *Millis, otherwise Millis) {
	if *m == 0 {
		*m = otherwise
	}
}

// flaw says what makes settings without zero fields impossible, or "".
func (v Settings) flaw() string {
	for _, m := range []Millis{v.DoubtWait, v.FingerprintLife, v.RecordLife, v.RetryMin, v.RetryMax} {
		if m < 0 || m > waitMax {
			return "a time is negative or too long"
		}
	}
	switch {
	case v.FingerprintLife > fingerprintLifeMax:
		return "fingerprints kept too long"
	case v.FingerprintMax < 0 || v.FingerprintMax > fingerprintsMax:
		return "impossible number of fingerprints"
	case v.RecordLife < v.FingerprintLife+hour:
		// A repeat may be answered with an id up to the last moment of its
		// fingerprint, and is itself proposed again for a while after.
		return "records must outlive fingerprints by an hour"
	case v.RetryMin > v.RetryMax:
		return "retry minimum above the maximum"
	case v.Voters < 0 || v.Voters > votersMax:
		return "impossible number of voters"
	case v.WaitsPerEntry < 0 || v.WaitsPerEntry > waitsPerEntryMax:
		return "impossible number of waits per entry"
	}
	return ""
}

// putSettings replaces the settings. Waits that run keep the length they were
// given; lives are judged by the new settings at once (fingerprints) or at the
// next Tick (records).
func (s *State) putSettings(v Settings) Result {
	v = v.WithDefaults()
	if flaw := v.flaw(); flaw != "" {
		return invalid("%s", flaw)
	}
	s.settings = v
	s.ageFingerprints()
	s.boundFingerprints()
	return Result{Verdict: Done}
}

// tick advances log time and does what that makes due. Fingerprints go before
// records, since they point at them.
func (s *State) tick(elapsed Millis) Result {
	if elapsed < 0 {
		return invalid("log time does not go back")
	}
	s.now += min(elapsed, tickMax)
	s.wake()
	s.ageFingerprints()
	s.expire()
	s.warn()
	s.endOutbound()
	s.forgetKnown()
	for {
		oldest, ok := s.ended.first()
		if !ok || oldest.at+s.settings.RecordLife > s.now {
			return Result{Verdict: Done}
		}
		m, _ := s.message(oldest.entry)
		s.drop(m)
	}
}

// cut returns a text for people as it is stored: valid UTF-8 without control
// characters, and not longer than max.
func cut(t string, max int) string {
	if len(t) > max {
		t = t[:max]
	}
	t = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}, t)
	return strings.Clone(t)
}
