package gate

import (
	"net/netip"
	"testing"
	"time"
)

// TestSparedClientsAreForgotten: after a while a client is asked again, and there are
// never too many to remember.
func TestSparedClientsAreForgotten(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	s := newSpared(func() time.Time { return now })
	client := func(n int) netip.Prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, byte(n >> 16), byte(n >> 8), byte(n)}), 32)
	}
	for n := range sparedMax + 10 {
		now = now.Add(time.Millisecond)
		s.add(client(n))
	}
	if len(s.till) != sparedMax {
		t.Errorf("%d are remembered, want %d", len(s.till), sparedMax)
	}
	if s.has(client(9)) || !s.has(client(10)) || !s.has(client(sparedMax+9)) {
		t.Error("not the oldest gave way")
	}
	now = now.Add(sparedTime)
	if s.has(client(sparedMax + 9)) {
		t.Error("remembered for ever")
	}
}
