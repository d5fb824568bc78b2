package sim

import (
	"fmt"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
)

// TestControlEarlyReply: the Accept is in the log of the leader and in no other
// when the leader is lost for good. A message whose sender read a 250 arrives all
// the same.
func TestControlEarlyReply(t *testing.T) {
	trial.Run(t, controls.EarlyReply, func(t *testing.T, on controls.Set) (broken error) {
		tell(t, 40, func(t *testing.T, s *story) {
			s.controls = on
			s.begin()
			old, others, answer := s.stranded(dora, false)
			s.PowerCut(old)
			s.Wipe(old)
			first := <-answer
			s.network.HealAll()
			s.awaitReady(others...)
			behind := letterTo{to: "eve@example.org", text: "behind it"}
			s.mustGive(others[0], behind, thenRead)
			s.primaryUp()
			s.await(time.Hour, behind.to+" is delivered", func() bool { return len(s.arrived.of(behind.to)) == 1 })
			time.Sleep(20 * time.Minute)
			if first.accepted() && len(s.arrived.of(dora.to)) == 0 {
				broken = fmt.Errorf("%s got a 250 as %s and is lost with one node of three", dora.to, first.id)
			}
		})
		return broken
	})
}

// TestControlUnknownRefused: a node gives an Accept to the leader and does not
// hear what became of it, since the other two die. What it answered with a 4yz is
// not delivered when they are back.
func TestControlUnknownRefused(t *testing.T) {
	trial.Run(t, controls.UnknownRefused, func(t *testing.T, on controls.Set) (broken error) {
		tell(t, 41, func(t *testing.T, s *story) {
			s.controls = on
			s.begin()
			leader, others := s.leader()
			at := others[0]
			c, answer := s.underWay(at, leader, dora)
			defer c.conn.Close()
			s.Kill(leader)
			s.Kill(others[1])
			first := <-answer
			s.start(leader) // whose log is the longest
			s.awaitReady(leader, at)
			s.primaryUp()
			s.await(time.Hour, dora.to+" is delivered", func() bool { return len(s.arrived.of(dora.to)) == 1 })
			if first.refused() {
				broken = fmt.Errorf("%s was answered %d %s, and is delivered", dora.to, first.code, first.text)
			}
		})
		return broken
	})
}
