package schedule

import (
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/mailserver"
)

// One run in five has a peer, and each make stands on each side that it can.
func TestPeerOf(t *testing.T) {
	const seeds = 2000
	seen := map[Peer]int{}
	for seed := range uint64(seeds) {
		p := PeerOf(seed)
		if p != PeerOf(seed) {
			t.Fatalf("seed %d: two peers", seed)
		}
		seen[p]++
	}
	if with := seeds - seen[Peer{}]; with < seeds/5-60 || with > seeds/5+60 {
		t.Errorf("%d of %d runs have a peer, want one in five", with, seeds)
	}
	for _, m := range mailserver.Makes() {
		for _, side := range []Side{Primary, Sender} {
			if n := seen[Peer{m, side}]; (n > 0) != (side == Primary || m.Sends()) {
				t.Errorf("%v: %d times", Peer{m, side}, n)
			}
		}
	}
}

// One run in four has five nodes, and the others three.
func TestNodesOf(t *testing.T) {
	seen := map[int]int{}
	for seed := range uint64(2000) {
		seen[NodesOf(seed)]++
	}
	if seen[3]+seen[5] != 2000 || seen[5] < 420 || seen[5] > 580 {
		t.Errorf("%v", seen)
	}
}

func TestParsePeer(t *testing.T) {
	for _, p := range []Peer{{}, {mailserver.Exim, Primary}, {mailserver.Postfix, Sender}} {
		if got, err := ParsePeer(p.String(), 1); err != nil || got != p {
			t.Errorf("%v became %v, %v", p, got, err)
		}
	}
	if got, err := ParsePeer("opensmtpd", 1); err != nil || got.Side != Primary {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"", "sendmail", "opensmtpd:sender", "exim:front", "none:primary"} {
		if p, err := ParsePeer(bad, 1); err == nil {
			t.Errorf("%q became %v", bad, p)
		}
	}
}
