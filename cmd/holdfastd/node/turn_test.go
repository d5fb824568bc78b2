package node

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/smtpd"
)

type hops struct {
	all []route.Hop
	err error
}

func (h hops) Route(context.Context, fsm.Domain) ([]route.Hop, error) { return h.all, h.err }

// TestWhoMayTurn: the domain's own next hops and the networks that it lists, nobody
// else; and where the next hops cannot be told, the answer is not "never".
func TestWhoMayTurn(t *testing.T) {
	next := hops{all: []route.Hop{{Address: netip.MustParseAddrPort("192.0.2.1:25")}, {Address: netip.MustParseAddrPort("[2001:db8::1]:2525")}}}
	listed := fsm.Domain{Name: "example.test", ETRN: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/48")}}
	dns := errors.New("SERVFAIL")
	for client, want := range map[string]error{
		"192.0.2.1": nil, "::ffff:192.0.2.1": nil, "2001:db8::1": nil, "198.51.100.7": nil, "::ffff:198.51.100.7": nil, "2001:db8:1::9": nil,
		"192.0.2.2": smtpd.ErrTurnRefused, "198.51.101.7": smtpd.ErrTurnRefused, "2001:db8:2::9": smtpd.ErrTurnRefused, "127.0.0.1": smtpd.ErrTurnRefused,
	} {
		if err := mayTurn(t.Context(), next, smtpd.Caller{Address: netip.MustParseAddr(client)}, listed); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", client, err, want)
		}
	}
	if err := mayTurn(t.Context(), hops{err: dns}, smtpd.Caller{Address: netip.MustParseAddr("198.51.100.7")}, listed); err != nil {
		t.Errorf("listed, without DNS: %v", err)
	}
	if err := mayTurn(t.Context(), hops{err: dns}, smtpd.Caller{Address: netip.MustParseAddr("192.0.2.1")}, listed); !errors.Is(err, dns) || errors.Is(err, smtpd.ErrTurnRefused) {
		t.Errorf("not listed, without DNS: %v", err)
	}
}

// TestWhoMayTurnByKey: a key that the domain lists may call from wherever, and one that
// another domain lists may not; a caller without a certificate has no key, not even that
// of 32 zeros.
func TestWhoMayTurnByKey(t *testing.T) {
	none := hops{all: []route.Hop{{Address: netip.MustParseAddrPort("192.0.2.1:25")}}}
	far := netip.MustParseAddr("203.0.113.9")
	mine := fsm.Domain{Name: "example.test", Callers: fsm.Callers{Pins: [][32]byte{{1}, {}}}}
	for name, c := range map[string]struct {
		who  smtpd.Caller
		want error
	}{
		"listed":         {smtpd.Caller{Address: far, Key: [32]byte{1}, HasKey: true}, nil},
		"another":        {smtpd.Caller{Address: far, Key: [32]byte{2}, HasKey: true}, smtpd.ErrTurnRefused},
		"no certificate": {smtpd.Caller{Address: far}, smtpd.ErrTurnRefused},
	} {
		if err := mayTurn(t.Context(), none, c.who, mine); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// TestTurnsAreSpaced: who asks again and again makes no entry each time.
func TestTurnsAreSpaced(t *testing.T) {
	var all turns
	now := time.Now()
	for i, want := range []bool{true, false, true} {
		if got := all.due("example.test", now.Add(time.Duration(i)*(turnSpacing/2))); got != want {
			t.Errorf("%d: %v, want %v", i, got, want)
		}
	}
	if !all.due("example.org", now) {
		t.Error("another domain waits")
	}
}
