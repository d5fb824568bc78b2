package cluster

import (
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
)

// A Sighting is what this node knows of one member, itself included, when it
// decides whether a cluster has to be founded.
type Sighting struct {
	Name        string
	Incarnation string
	Address     string
	Alive       bool
	HasState    bool // its data directory has a Raft log, or once had
	// Sees is what the member itself says of whom it sees: SightingsDigest of
	// its own view.
	Sees string
}

// SightingsDigest names a set of living members in 16 characters, so that nodes
// can compare their views without sending them.
func SightingsDigest(seen []Sighting) string {
	var ids []string
	for _, s := range seen {
		if s.Alive {
			ids = append(ids, s.Name+"/"+s.Incarnation)
		}
	}
	slices.Sort(ids)
	sum := sha256.Sum256([]byte(strings.Join(ids, ",")))
	return hex.EncodeToString(sum[:8])
}

// DecideBootstrap returns the members with which the node self must found the
// cluster, or nil when it must not. It says yes on one node only, and only if
// exactly expect living members see exactly each other and none of them has
// state: a node that comes up alone or empty beside an existing cluster waits
// to be added to it.
func DecideBootstrap(self string, expect int, seen []Sighting) []Sighting {
	if expect < 1 {
		return nil
	}
	var alive []Sighting
	for _, s := range seen {
		if s.HasState {
			return nil
		}
		if s.Alive {
			alive = append(alive, s)
		}
	}
	if len(alive) != expect {
		return nil
	}
	slices.SortFunc(alive, func(a, b Sighting) int { return strings.Compare(a.Name, b.Name) })
	if alive[0].Name != self {
		return nil
	}
	all := SightingsDigest(alive)
	for i, s := range alive {
		if s.Sees != all || i > 0 && s.Name == alive[i-1].Name {
			return nil
		}
	}
	return alive
}
