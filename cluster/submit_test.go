package cluster

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
)

// serversOf reads "a/1 b/1 c/2?", where ? marks one without a vote.
func serversOf(text string) (servers []consensus.Server) {
	for _, one := range strings.Fields(text) {
		id, nonvoter := strings.CutSuffix(one, "?")
		servers = append(servers, consensus.Server{ID: consensus.ServerID(id), Voter: !nonvoter})
	}
	return servers
}

// TestRegressionCopiesAreCounted: node a takes a message. Acks come in turn, "b" that b
// holds the body and "b!" that it could not store it.
//
// It holds this defect: a node that had lost its disk stood in the configuration twice,
// and its acknowledgements were counted twice towards a majority.
func TestRegressionCopiesAreCounted(t *testing.T) {
	const waiting, enough, hopeless = "waiting", "enough", "hopeless"
	for _, tt := range []struct {
		servers, leader, acks, want string
	}{
		{"a/1", "a", "", waiting},
		{"a/1", "a", "a", enough},
		{"a/1 b/1 c/1", "a", "a", waiting},
		{"a/1 b/1 c/1", "a", "b c", waiting}, // not here: nothing to fall back on
		{"a/1 b/1 c/1", "a", "b c a", enough},
		{"a/1 b/1 c/1", "a", "a b", enough},
		{"a/1 b/1 c/1", "b", "a c", waiting}, // the leader has not got it
		{"a/1 b/1 c/1", "b", "a c b", enough},
		{"a/1 b/1 c/1", "a", "a b!", waiting},
		{"a/1 b/1 c/1", "a", "a b! c!", hopeless},
		{"a/1 b/1 c/1", "a", "b! c!", hopeless}, // whatever becomes of its own
		{"a/1 b/1 c/1", "b", "a b! c", hopeless},
		// Who has no vote does not count, unless it leads.
		{"a/1 b/1 c/1 d/1?", "a", "a d", waiting},
		{"a/1 b/1 c/1 d/1?", "a", "a d b", enough},
		{"a/1 b/1 c/1 d/1?", "a", "a b! c!", hopeless}, // d need not be waited for
		{"a/1? b/1 c/1 d/1", "b", "a b", waiting},
		{"a/1? b/1 c/1 d/1", "b", "a b d", enough},
		{"a/1 b/1 c/1", "d", "a b c", hopeless}, // a leader that is in no configuration
		// A node in two lives is one disk.
		{"a/1 b/1 b/2? c/1", "a", "a", waiting},
		{"a/1 b/1 b/2 c/1 d/1 e/1", "a", "a b", waiting},
		{"a/1 b/1 b/2 c/1 d/1 e/1", "a", "a b c", enough},
		{"a/1 a/2 b/1 c/1", "a", "a", waiting},
		{"a/1 a/2 b/1 c/1", "a", "a b", enough},
		{"a/2? a/1 b/1 c/1", "b", "a b", enough},
	} {
		c, others := newCopies("a", tt.leader, serversOf(tt.servers))
		if slices.Contains(others, "a") {
			t.Errorf("%s: a is to push to itself", tt.servers)
		}
		if unique := slices.Compact(slices.Sorted(slices.Values(others))); len(unique) != len(others) || c.pending != 1+len(others) {
			t.Errorf("%s: pushes to %v, %d acks awaited", tt.servers, others, c.pending)
		}
		for _, one := range strings.Fields(tt.acks) {
			name, failed := strings.CutSuffix(one, "!")
			a := ack{name: name}
			if failed {
				a.err = errors.New("no space left on device")
			}
			c.count(a)
		}
		got := waiting
		switch {
		case c.enough():
			got = enough
		case c.hopeless():
			got = hopeless
		}
		if got != tt.want {
			t.Errorf("%s led by %s, acks %q: %s, want %s", tt.servers, tt.leader, tt.acks, got, tt.want)
		}
	}
}
