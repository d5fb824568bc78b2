package consensus

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestSplit: the parts hold all entries in order, each part names the entry
// before it, is small enough or a single entry, and nothing that Raft gave us
// is changed.
func TestSplit(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	data := make([]byte, 2*appendBytesMax)
	for range 500 {
		req := &raft.AppendEntriesRequest{Term: 9, PrevLogEntry: 100, PrevLogTerm: 3, LeaderCommitIndex: 50}
		for i := range random.IntN(appendEntriesMax + 1) {
			size := random.IntN(1000)
			if random.IntN(3) == 0 {
				size = random.IntN(2 * appendBytesMax)
			}
			req.Entries = append(req.Entries, &raft.Log{Index: 101 + uint64(i), Term: 3 + uint64(i/10), Data: data[:size]})
		}
		given, prev, prevTerm := *req, req.PrevLogEntry, req.PrevLogTerm
		total := 0
		for i, part := range split(req) {
			bytes := 0
			if part.PrevLogEntry != prev || part.PrevLogTerm != prevTerm || part.Term != 9 || part.LeaderCommitIndex != 50 {
				t.Fatalf("part %d: %+v, want predecessor %d of term %d", i, part, prev, prevTerm)
			}
			if len(part.Entries) == 0 && len(req.Entries) > 0 {
				t.Fatalf("part %d is empty", i)
			}
			for _, l := range part.Entries {
				if l != req.Entries[total] {
					t.Fatalf("part %d: entry %d is not the next", i, l.Index)
				}
				bytes += len(l.Data) + entryOverheadBytes
				prev, prevTerm = l.Index, l.Term
				total++
			}
			if bytes > appendBytesMax && len(part.Entries) > 1 {
				t.Fatalf("part %d: %d octets in %d entries", i, bytes, len(part.Entries))
			}
		}
		if total != len(req.Entries) {
			t.Fatalf("%d entries of %d", total, len(req.Entries))
		}
		if given.PrevLogEntry != req.PrevLogEntry || given.PrevLogTerm != req.PrevLogTerm || len(given.Entries) != len(req.Entries) {
			t.Fatal("the request was changed")
		}
	}
}

func testSender(atStart, live uint64) *sender {
	s := &sender{settled: new(logStore).settled, floor: &floor{atStart: atStart}, latch: newLatch(), stalled: func() bool { return false }, witness: new(witness), refused: func(*raft.AppendEntriesRequest) {}}
	s.floor.value.Store(live)
	return s
}

// TestWithFloor: the floor of the start, bounded by the request's last entry;
// never the live one; heartbeats and the request itself stay as they are.
func TestWithFloor(t *testing.T) {
	entries := func(n int) []*raft.Log { return make([]*raft.Log, n) }
	for _, test := range []struct {
		name          string
		atStart, live uint64
		req           raft.AppendEntriesRequest
		want          uint64
	}{
		{"heartbeat", 50, 60, raft.AppendEntriesRequest{}, 0},
		{"fresh leader", 50, 60, raft.AppendEntriesRequest{PrevLogEntry: 100, Entries: entries(2)}, 50},
		{"bounded by the last entry", 50, 60, raft.AppendEntriesRequest{PrevLogEntry: 30, Entries: entries(2)}, 32},
		{"bounded by the predecessor", 50, 60, raft.AppendEntriesRequest{PrevLogEntry: 30}, 30},
		{"commit index is greater", 50, 60, raft.AppendEntriesRequest{PrevLogEntry: 100, LeaderCommitIndex: 55}, 55},
		{"no floor at start", 0, 60, raft.AppendEntriesRequest{PrevLogEntry: 100}, 0},
	} {
		given := test.req
		if got := testSender(test.atStart, test.live).withFloor(&test.req); got.LeaderCommitIndex != test.want {
			t.Errorf("%s: %d, want %d", test.name, got.LeaderCommitIndex, test.want)
		}
		if test.req.LeaderCommitIndex != given.LeaderCommitIndex {
			t.Errorf("%s: changed in place", test.name)
		}
	}
}

// TestSenderStopsAtTheFirstPartThatFails, and sends nothing while the log
// cannot be written.
func TestSenderStopsAtTheFirstPartThatFails(t *testing.T) {
	big := make([]byte, appendBytesMax)
	req := &raft.AppendEntriesRequest{Entries: []*raft.Log{{Index: 1, Data: big}, {Index: 2, Data: big}, {Index: 3, Data: big}}}
	broken := errors.New("broken")
	for _, test := range []struct {
		name    string
		success bool
		err     error
	}{{"not successful", false, nil}, {"error", true, broken}} {
		s := testSender(0, 0)
		sent := 0
		s.send = func(_ raft.ServerID, _ raft.ServerAddress, part *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
			sent++
			resp.Success = sent == 1 || test.success
			if sent == 2 {
				return test.err
			}
			return nil
		}
		var resp raft.AppendEntriesResponse
		if err := s.appendEntries("", "", req, &resp); !errors.Is(err, test.err) || sent != 2 || test.err == nil && resp.Success {
			t.Errorf("%s: %v, %d sent, %+v", test.name, err, sent, resp)
		}
		s.latch.fail(broken)
		if err := s.appendEntries("", "", &raft.AppendEntriesRequest{}, &resp); err == nil || sent != 2 {
			t.Errorf("%s: sent with a broken log: %v", test.name, err)
		}
	}
}

// TestSplitRequestsAtTheGate: a follower that was away catches up on entries
// that are too many for one request, each naming a body; one of the bodies in
// the middle comes late. No write on it is larger than a request may be.
func TestSplitRequestsAtTheGate(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		late := c.members[c.others(a.name)[0]]
		late.kill()
		var refs []mail.BodyRef
		for range 40 {
			ref := c.mint()
			refs = append(refs, ref)
			for _, name := range c.names {
				if name != late.name {
					c.put(ref, name)
				}
			}
			data := append(acceptCommand(ref), bytes.Repeat([]byte{0}, 60<<10)...)
			if err := a.propose(patience, data, &ref); err != nil {
				t.Fatalf("propose: %v", err)
			}
		}
		last := a.node().LastIndex()
		c.down()
		// After the restart nobody knows the entries to be committed, so that
		// all bodies are needed. All but one are there already.
		held := refs[20]
		c.bodies.Network.Cut(a.name, late.name)
		largest := 0
		c.oracle.watchStores(func(m *testMember, logs []*raft.Log) {
			bytes := 0
			for _, l := range logs {
				bytes += len(l.Data) + len(l.Extensions) + entryOverheadBytes
			}
			if m == late {
				largest = max(largest, bytes)
			}
		})
		c.up(a.name, late.name)
		for _, ref := range refs {
			if ref != held {
				c.put(ref, late.name)
			}
		}
		c.must("entries up to the missing body", func() bool {
			_, l := late.disk.Bounds()
			_, has := late.disk.Entry(l)
			return has && l > last-30
		})
		if c.eventually(10*time.Second, func() bool { _, l := late.disk.Bounds(); return l >= last }) {
			t.Error("the entry without its body was stored")
		}
		c.bodies.Network.HealAll()
		c.must("all entries", func() bool { _, l := late.disk.Bounds(); return l > last })
		c.must("all level", c.level)
		if largest == 0 || largest > appendBytesMax {
			t.Errorf("largest write %d octets, at most %d", largest, appendBytesMax)
		}
		for _, ref := range refs {
			if !late.running().fsm.knows(ref) {
				t.Errorf("%s is not known", ref)
			}
		}
		c.oracle.clean()
	})
}
