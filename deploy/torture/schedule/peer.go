package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/deploy/mailserver"
)

// A Side is where a mail server of another maker stands.
type Side string

// The sides.
const (
	Primary Side = "primary" // mail is delivered to it
	Sender  Side = "sender"  // it hands mail to the nodes
)

// A Peer is a real mail server in a run. The zero value is none: the harness plays
// all senders and the primary.
type Peer struct {
	Make mailserver.Make
	Side Side
}

func (p Peer) String() string {
	if p == (Peer{}) {
		return "none"
	}
	return string(p.Make) + ":" + string(p.Side)
}

// peerStream sets the choice of a peer apart from the plan of faults, which is the
// same with any.
const peerStream = 0x70656572

// PeerOf chooses the peer of a run: in one of five there is one.
func PeerOf(seed uint64) Peer {
	r := rand.New(rand.NewPCG(seed, peerStream))
	if r.IntN(5) != 0 {
		return Peer{}
	}
	makes := mailserver.Makes()
	return besides(r, makes[r.IntN(len(makes))])
}

// NodesOf chooses how many nodes a run has: five in one of four, otherwise three.
func NodesOf(seed uint64) int {
	if rand.New(rand.NewPCG(seed, 0x6e6f646573)).IntN(4) == 0 {
		return 5
	}
	return 3
}

// besides chooses a side for a make.
func besides(r *rand.Rand, m mailserver.Make) Peer {
	if m.Sends() && r.IntN(2) == 0 {
		return Peer{m, Sender}
	}
	return Peer{m, Primary}
}

// ParsePeer reads none, MAKE, whose side the seed chooses, or MAKE:SIDE.
func ParsePeer(s string, seed uint64) (Peer, error) {
	if s == "none" {
		return Peer{}, nil
	}
	name, side, told := strings.Cut(s, ":")
	p := Peer{mailserver.Make(name), Side(side)}
	switch {
	case !slices.Contains(mailserver.Makes(), p.Make):
		return p, fmt.Errorf("no mail server %q: want none, or one of %v and perhaps :primary or :sender", name, mailserver.Makes())
	case !told:
		return besides(rand.New(rand.NewPCG(seed, peerStream)), p.Make), nil
	case p.Side == Sender && !p.Make.Sends():
		return p, fmt.Errorf("%s can be the primary only", name)
	case p.Side != Primary && p.Side != Sender:
		return p, fmt.Errorf("no side %q of a mail server: want primary or sender", side)
	}
	return p, nil
}
