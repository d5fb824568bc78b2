package delivery

import (
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
)

// TestSharesMakeTheCeiling: the nodes together have as many connections as the ceiling
// says, that of the domain before that of the configuration, and each has one.
func TestSharesMakeTheCeiling(t *testing.T) {
	for nodes := 1; nodes <= 5; nodes++ {
		for ceiling := 1; ceiling <= 25; ceiling++ {
			together := 0
			for rank := range nodes {
				h := &hop{
					a:       &Agent{c: Config{ConnectionsMax: 100}},
					work:    &Work{Domain: fsm.Domain{ConnectionsMax: ceiling}, Due: 1 << 20, Rank: rank, Nodes: nodes},
					allowed: -1, proven: true,
				}
				together += h.connectionsWanted()
			}
			if want := max(ceiling, nodes); together != want {
				t.Errorf("%d nodes have %d connections, want %d", nodes, together, want)
			}
		}
	}
}
