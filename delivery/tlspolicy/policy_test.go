package tlspolicy

import (
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestModes(t *testing.T) {
	for m := range Mode(len(modeNames)) {
		if got, err := ParseMode(m.String()); err != nil || got != m {
			t.Errorf("%s: %v %v", m, got, err)
		}
	}
	for _, s := range []string{"", "Require", "dane-only", "mode 7"} {
		if _, err := ParseMode(s); err == nil {
			t.Errorf("%q is a mode", s)
		}
	}
}

func TestPins(t *testing.T) {
	pin := PinOf(newAuthority(t, "a").Issue(t, template{Names: []string{"a.test"}}).Leaf)
	colons := strings.ToUpper(strings.TrimSuffix(strings.ReplaceAll(fmt.Sprintf("% x ", pin[:]), " ", ":"), ":"))
	for _, s := range []string{pin.String(), strings.ToUpper(pin.String()), colons, base64.StdEncoding.EncodeToString(pin[:])} {
		if got, err := ParsePin(s); err != nil || got != pin {
			t.Errorf("%q: %v %v", s, got, err)
		}
	}
	for _, s := range []string{"", "ab", pin.String()[2:], pin.String() + "00", strings.Repeat("g", 64), base64.StdEncoding.EncodeToString(pin[:31])} {
		if got, err := ParsePin(s); err == nil {
			t.Errorf("%q: %v", s, got)
		}
	}
}

func TestCheck(t *testing.T) {
	a := newAuthority(t, "authority")
	leaf := a.Issue(t, template{Names: []string{"a.test"}})
	pin := []Pin{PinOf(leaf.Leaf)}
	for _, row := range []struct {
		p    Policy
		want string // "" for a good one
	}{
		{Policy{}, ""},
		{Policy{Mode: Require}, ""},
		{Policy{Mode: DANE}, ""},
		{Policy{Mode: MTASTS}, ""},
		{Policy{Mode: Verify}, ""},
		{Policy{Mode: Verify, Pins: pin}, ""},
		{Policy{Mode: Verify, CAs: a.PEM()}, ""},
		{Policy{Mode: Verify, CAs: "\n" + a.PEM() + "\n\n" + newAuthority(t, "other").PEM() + "\n"}, ""},
		{Policy{Mode: Verify, CAs: a.PEM(), Pins: pin, Names: []string{"a.test", ".b.test"}}, ""},
		{Policy{Mode: Verify, Names: []string{"a.test"}}, ""},
		{Policy{Mode: 9}, "unknown TLS mode 9"},
		{Policy{Mode: Require, Pins: pin}, "takes no pins"},
		{Policy{Mode: DANE, CAs: a.PEM()}, "takes no pins"},
		{Policy{Names: []string{"a.test"}}, "takes no pins"},
		{Policy{Mode: Verify, Pins: pin, Names: []string{"a.test"}}, "only keys are pinned"},
		{Policy{Mode: Verify, CAs: "hello"}, "authority 1 is no certificate"},
		{Policy{Mode: Verify, CAs: " \n"}, ""},
		{Policy{Mode: Verify, CAs: a.PEM() + "tail"}, "authority 2 is no certificate"},
		{Policy{Mode: Verify, CAs: strings.ReplaceAll(a.PEM(), "CERTIFICATE", "PRIVATE KEY")}, "is a \"PRIVATE KEY\""},
		{Policy{Mode: Verify, CAs: pemOf(leaf.Leaf.Raw)}, "pin its key"},
		{Policy{Mode: Verify, CAs: pemOf([]byte("nonsense"))}, "authority 1:"},
		{Policy{Mode: Verify, CAs: strings.Repeat(a.PEM(), 200)}, "more than"},
		{Policy{Mode: Verify, Pins: make([]Pin, pinsMax+1)}, "more than"},
		{Policy{Mode: Verify, Names: []string{"A.test"}}, "is written \"a.test\""},
		{Policy{Mode: Verify, Names: []string{".B.test"}}, "is written \".b.test\""},
		{Policy{Mode: Verify, Names: []string{"*.test"}}, "not a domain"},
		{Policy{Mode: Verify, Names: []string{""}}, "not a domain"},
	} {
		err := row.p.Check()
		if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s with %d pins, %v: %v, want %q", row.p.Mode, len(row.p.Pins), row.p.Names, err, row.want)
		}
	}
}

func TestDays(t *testing.T) {
	for text, want := range map[string]Day{
		"1970-01-01T00:00:00Z": 0, "1970-01-01T23:59:59Z": 0, "1969-12-31T23:59:59Z": -1, "1969-12-31T00:00:00Z": -1,
		"2026-11-30T00:00:00Z": 20787, "2026-11-30T01:59:59+02:00": 20786,
	} {
		at, err := time.Parse(time.RFC3339, text)
		if err != nil {
			t.Fatal(err)
		}
		if got := DayOf(at); got != want {
			t.Errorf("%s: %d, want %d", text, got, want)
		}
		if start := DayOf(at).Start(); start.After(at) || at.Sub(start) >= 24*time.Hour {
			t.Errorf("%s begins at %s", text, start)
		}
	}
}
