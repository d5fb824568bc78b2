package consensus

import (
	"fmt"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
)

// TestWithoutCovered: what Raft is given of a request that begins before the log.
func TestWithoutCovered(t *testing.T) {
	for _, test := range []struct {
		name          string
		applied       uint64
		log           []*raft.Log // what there is of it
		prev, entries uint64      // the request: its predecessor and how many entries
		commit        uint64
		wantPrev      uint64
		wantFirst     uint64 // of the entries, 0 for none
		wantCommit    uint64
	}{
		{"the predecessor is in the log", 8, entriesOf(6, 9, 1), 6, 2, 9, 6, 7, 9},
		{"the first entry of the log", 8, entriesOf(6, 9, 1), 6, 0, 9, 6, 0, 9},
		{"nothing is applied", 0, entriesOf(6, 9, 1), 3, 2, 9, 3, 4, 9},
		{"behind what is applied", 5, nil, 7, 2, 9, 7, 8, 9},
		{"all of it is applied", 5, entriesOf(6, 9, 1), 2, 2, 9, 0, 0, 5},
		{"it ends with what is applied", 5, entriesOf(6, 9, 1), 2, 3, 9, 0, 0, 5},
		{"it goes on into the log", 5, entriesOf(6, 9, 1), 2, 5, 9, 0, 6, 7},
		{"it begins behind a snapshot", 5, entriesOf(6, 9, 1), 5, 2, 6, 0, 6, 6},
		{"behind a snapshot and an empty log", 5, nil, 5, 2, 9, 0, 6, 7},
		{"a question", 5, entriesOf(6, 9, 1), 4, 0, 9, 0, 0, 5},
		{"the log is whole", 2, entriesOf(1, 4, 1), 0, 3, 4, 0, 1, 4},
		{"from the beginning on", 5, entriesOf(6, 9, 1), 0, 7, 9, 0, 6, 7},
		{"from the beginning on, and no further", 5, entriesOf(6, 9, 1), 0, 2, 9, 0, 0, 5},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &logStore{store: clustertest.NewRaftDisk(1, 0).Open(), latch: newLatch()}
			if len(test.log) > 0 {
				if err := s.StoreLogs(test.log); err != nil {
					t.Fatal(err)
				}
			}
			g := &gate{log: s, applied: func() uint64 { return test.applied }}
			req := &raft.AppendEntriesRequest{Term: 1, PrevLogEntry: test.prev, PrevLogTerm: min(test.prev, 1), LeaderCommitIndex: test.commit}
			if test.entries > 0 {
				req.Entries = entriesOf(test.prev+1, test.prev+test.entries, 1)
			}
			got := g.withoutCovered(req)
			first := uint64(0)
			if len(got.Entries) > 0 {
				first = got.Entries[0].Index
			}
			if got.PrevLogEntry != test.wantPrev || first != test.wantFirst || got.LeaderCommitIndex != test.wantCommit {
				t.Errorf("predecessor %d, entries from %d, commit index %d; want %d, %d, %d",
					got.PrevLogEntry, first, got.LeaderCommitIndex, test.wantPrev, test.wantFirst, test.wantCommit)
			}
			if got.PrevLogTerm != min(got.PrevLogEntry, 1) {
				t.Errorf("predecessor %d of term %d", got.PrevLogEntry, got.PrevLogTerm)
			}
			if req.PrevLogEntry != test.prev || uint64(len(req.Entries)) != test.entries || req.LeaderCommitIndex != test.commit {
				t.Error("the request was changed")
			}
		})
	}
}

// TestRegressionFollowerKeepsWhatItHasApplied: a leader that does not know how far a
// follower is, since an answer got lost, sends it what it has applied and
// compacted long ago: entries, or a snapshot. It says yes to them, drops nothing of
// its log and does not go back.
//
// It holds this defect: a follower whose answer had got lost dropped entries that it had
// acknowledged, or panicked, when its leader sent it an older snapshot.
func TestRegressionFollowerKeepsWhatItHasApplied(t *testing.T) {
	for _, installed := range []bool{false, true} {
		t.Run(fmt.Sprintf("snapshot of the leader %v", installed), func(t *testing.T) {
			inCluster(t, 3, clusterOptions{trailing: 1}, func(t *testing.T, c *testCluster) {
				c.up()
				c.bootstrap()
				leader := c.leader()
				follower := c.members[c.others(leader.name)[0]]
				if installed {
					c.down(follower.name)
				}
				for range 20 {
					c.commit(leader)
				}
				if installed {
					if err := leader.node().Snapshot(t.Context()); err != nil {
						t.Fatal(err)
					}
					c.up(follower.name)
				}
				c.must("all level", c.level)
				if !installed {
					if err := follower.node().Snapshot(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				for range 5 {
					c.commit(leader)
				}
				c.must("all level", c.level)
				first, last := follower.disk.Bounds()
				covered := first - 1 // in the snapshot, and no longer in the log
				if first < 15 || last != leader.node().LastIndex() {
					t.Fatalf("log of the follower from %d to %d", first, last)
				}
				restores := follower.running().fsm.restores()
				judge := func(what string, success bool, err error) {
					t.Helper()
					if err != nil || !success {
						t.Errorf("%s: success %v, error %v", what, success, err)
					}
					if f, l := follower.disk.Bounds(); f != first || l != last {
						t.Errorf("%s: the log is from %d to %d, was from %d to %d", what, f, l, first, last)
					}
					if n := follower.running().fsm.restores(); n != restores {
						t.Errorf("%s: the state was replaced", what)
					}
					if err := follower.node().Err(); err != nil {
						t.Errorf("%s: the node failed: %v", what, err)
					}
				}
				header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(leader.id()), Addr: []byte(leader.id())}
				term := leader.node().Term()
				for _, prev := range []uint64{0, 1, covered - 1, covered} {
					for _, end := range []uint64{prev, covered, last} {
						if end == 0 || end < prev {
							continue
						}
						req := &raft.AppendEntriesRequest{RPCHeader: header, Term: term, PrevLogEntry: prev, PrevLogTerm: min(prev, 1), LeaderCommitIndex: last}
						for index := prev + 1; index <= end; index++ {
							entry, ok := leader.disk.Entry(index)
							if !ok { // the leader has it in its snapshot, too
								entry = raft.Log{Index: index, Term: 1, Type: raft.LogNoop}
							}
							req.Entries = append(req.Entries, &entry)
						}
						resp, err := sendDirectly(c, follower, req)
						judge(fmt.Sprintf("entries %d to %d", prev+1, end), resp.Success, err)
					}
				}
				for _, index := range []uint64{5, covered, last} {
					data := "not even a snapshot"
					resp, err := installDirectly(c, follower, &raft.InstallSnapshotRequest{
						RPCHeader: header, SnapshotVersion: 1, Term: term, LastLogIndex: index, LastLogTerm: 0,
						Configuration: raft.EncodeConfiguration(goodConfiguration(c)), ConfigurationIndex: 1,
						Size: int64(len(data)),
					}, strings.NewReader(data))
					judge(fmt.Sprintf("a snapshot up to %d", index), resp.Success, err)
				}
				c.commit(leader)
				c.must("all level", c.level)
				if got := leader.node().Term(); got != term {
					t.Errorf("term %d, was %d", got, term)
				}
				c.oracle.clean()
			})
		})
	}
}
