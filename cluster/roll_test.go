package cluster

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
)

// TestRollUnderstands: a command of a newer version is proposed only when every
// other server, voter or not, has said lately that it can apply it.
func TestRollUnderstands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		servers := []consensus.Server{{ID: "a/1", Voter: true}, {ID: "b/1", Voter: true}, {ID: "c/1"}}
		var r roll
		check := func(want bool, when string) {
			t.Helper()
			if got := r.understand(fsm.RecordStart{}, "a/1", servers); got != want {
				t.Errorf("%s: %v", when, got)
			}
		}
		check(false, "nobody has said anything")
		r.note(peer.Health{ServerID: "b/1", CommandVersion: fsm.CommandVersion})
		check(false, "one is silent")
		r.note(peer.Health{ServerID: "c/1"})
		check(false, "one is older than any that says it")
		r.note(peer.Health{ServerID: "c/1", CommandVersion: 1})
		check(false, "one is older")
		if !r.understand(fsm.Settle{}, "a/1", servers) {
			t.Error("an old command is not understood")
		}
		r.note(peer.Health{ServerID: "c/2", CommandVersion: fsm.CommandVersion})
		check(false, "another life of it is not older")
		r.note(peer.Health{ServerID: "c/1", CommandVersion: fsm.CommandVersion})
		check(true, "all can")
		time.Sleep(rollLife)
		check(false, "that was long ago")
		if r.understand(fsm.RecordStart{}, "a/1", nil) {
			t.Error("an empty configuration understands")
		}
	})
}
