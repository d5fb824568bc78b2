package consensus

import (
	"fmt"
	"testing"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

// TestControlHeartbeatFastPath holds us to hashicorp/raft#695: a heartbeat of a
// newer term, handled on the transport's goroutine, changes the term under a
// leader that still sits in its leader loop, and what that leader appends next
// carries the new leader's term.
func TestControlHeartbeatFastPath(t *testing.T) {
	trial.Run(t, controls.HeartbeatFastPath, func(t *testing.T, on controls.Set) (broken error) {
		inCluster(t, 3, clusterOptions{controls: on}, func(t *testing.T, c *testCluster) {
			c.up()
			c.bootstrap()
			a := c.leader()
			c.commit(a)
			term := a.node().Term()
			// A new leader, elected behind a's back, sends its heartbeat.
			for _, other := range c.others(a.name) {
				c.net.Cut(a.name, other)
			}
			b := c.members[c.others(a.name)[0]]
			heartbeat := &raft.AppendEntriesRequest{
				RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(b.id()), Addr: []byte(b.id())},
				Term:      term + 1,
				Leader:    []byte(b.id()),
			}
			sendDirectly(c, a, heartbeat)
			// Not by Propose, which asks first whether we lead.
			f := a.node().raft.Apply([]byte{commandNothing}, time.Second)
			endWith(f, a.node().ended)
			_ = f.Error()
			_, last := a.disk.Bounds()
			if l, _ := a.disk.Entry(last); l.Term > term {
				broken = fmt.Errorf("the last entry of the deposed leader has term %d, its own was %d", l.Term, term)
			}
		})
		return broken
	})
}

// sendDirectly sends one request to a member over the wire and waits for the
// answer.
func sendDirectly(c *testCluster, to *testMember, req *raft.AppendEntriesRequest) (raft.AppendEntriesResponse, error) {
	c.t.Helper()
	host := c.net.Host("outside")
	listener, err := host.Listen(raftPort)
	if err != nil {
		c.t.Fatal(err)
	}
	s := newStream(testStream{listener, host})
	sender := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s, Logger: newLogger(testLogger("outside")), MaxPool: 1, Timeout: 10 * time.Second, MsgpackUseNewTimeFormat: true,
	})
	defer sender.Close()
	var resp raft.AppendEntriesResponse
	err = sender.AppendEntries(raft.ServerID(to.id()), raftAddress(to.id(), to.address()), req, &resp)
	return resp, err
}
