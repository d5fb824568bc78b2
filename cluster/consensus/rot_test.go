package consensus

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// lonely makes a member lead and append one entry that no other member has,
// then stops everybody.
func lonely(t *testing.T, c *testCluster) (*testMember, mail.BodyRef) {
	t.Helper()
	c.up()
	c.bootstrap()
	a := c.leader()
	c.commit(a)
	c.must("all level", c.level)
	for _, name := range c.others(a.name) {
		c.net.Cut(a.name, name)
	}
	ref := c.mint()
	c.put(ref, a.name)
	if err := a.accept(time.Second, ref); !errors.Is(err, ErrOutcomeUnknown) {
		t.Fatalf("accept: %v", err)
	}
	c.down()
	c.net.HealAll()
	return a, ref
}

// TestStartUpCheck: the only copy of an uncommitted entry's body has rotted on
// the member with the longest log. It must not start, so that the others go on.
func TestStartUpCheck(t *testing.T) {
	t.Run("rotten", func(t *testing.T) {
		inCluster(t, 3, clusterOptions{housekeeping: true}, func(t *testing.T, c *testCluster) {
			a, ref := lonely(t, c)
			a.bodyDisk.Rot(ref)
			c.up(c.others(a.name)...)
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			err := a.startWithin(ctx)
			if !errors.Is(err, ErrBodyLost) || !strings.Contains(err.Error(), ref.ID.String()) || !strings.Contains(err.Error(), "Start another member") {
				t.Errorf("start: %v", err)
			}
			if !c.goesOn(patience) {
				t.Error("the others do not go on")
			}
			c.oracle.clean()
		})
	})
	t.Run("control: without the check", func(t *testing.T) {
		inCluster(t, 3, clusterOptions{controls: trial.On(t, controls.StartCheckOff)}, func(t *testing.T, c *testCluster) {
			a, ref := lonely(t, c)
			a.bodyDisk.Rot(ref)
			for _, name := range c.others(a.name) {
				c.members[name].heartbeat = HeartbeatTimeoutWAN // a stands first
			}
			c.up()
			// It wins by its longer log, and nobody can commit, until it finds
			// out by itself.
			if c.goesOn(repairPatience/2) || c.currentLeader() != a {
				t.Error("goes on: the check is not needed, or this test is wrong")
			}
		})
	})
	t.Run("repaired", func(t *testing.T) {
		inCluster(t, 3, clusterOptions{housekeeping: true}, func(t *testing.T, c *testCluster) {
			a, ref := lonely(t, c)
			other := c.others(a.name)[0]
			c.up(c.others(a.name)...)
			c.put(ref, other)
			a.bodyDisk.Rot(ref) // not lost: then the entry would be cut off
			c.up(a.name)
			if !a.bodyDisk.Has(ref) {
				t.Error("not repaired")
			}
			c.oracle.conclude()
			c.oracle.clean()
		})
	})
}

// TestLeaderFindsItsOwnBodyLost: rot at run time. The leader cannot serve a body
// that its log names and that is not committed. It repairs it from a member
// that has it, or stops, and the others go on without the entry.
func TestLeaderFindsItsOwnBodyLost(t *testing.T) {
	for _, elsewhere := range []bool{true, false} {
		name := "nobody has it"
		if elsewhere {
			name = "another member has it"
		}
		t.Run(name, func(t *testing.T) {
			inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
				c.up()
				c.bootstrap()
				a := c.leader()
				c.commit(a)
				c.must("all level", c.level)
				term := a.node().Term()
				for _, name := range c.others(a.name) {
					c.bodies.Network.Cut(a.name, name)
				}
				ref := c.mint()
				c.put(ref, a.name)
				if err := a.accept(time.Second, ref); !errors.Is(err, ErrOutcomeUnknown) {
					t.Fatalf("accept: %v", err)
				}
				a.bodyDisk.Rot(ref)
				if elsewhere {
					// Its Raft is out of reach, so that it does not acknowledge yet.
					other := c.others(a.name)[0]
					c.net.Cut(a.name, other)
					c.put(ref, other)
					c.bodies.Network.Heal(a.name, other)
					c.must("the repair", func() bool { return a.bodyDisk.Has(ref) })
					c.net.HealAll()
					c.bodies.Network.HealAll()
					c.must("the entry committed", func() bool { return a.running().fsm.knows(ref) })
					if a.node().Err() != nil || a.node().Term() != term {
						t.Errorf("failed: %v, term %d, was %d", a.node().Err(), a.node().Term(), term)
					}
				} else {
					c.bodies.Network.HealAll()
					c.must("the end of the node", func() bool { return a.node().Err() != nil })
					if !errors.Is(a.node().Err(), ErrBodyLost) {
						t.Errorf("failed with %v", a.node().Err())
					}
					if !c.goesOn(patience) {
						t.Error("the others do not go on")
					}
					if leader := c.leader(); leader == a {
						t.Error("it still leads")
					}
				}
				c.oracle.clean()
			})
		})
	}
}

// TestLostBodyOfACommittedEntry: others hold it, so the floor says so, and the
// node goes on. Bodies that the log does not name do not matter.
func TestLostBodyOfACommittedEntry(t *testing.T) {
	inCluster(t, 3, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		ref := c.mint()
		c.put(ref, c.names...)
		if err := a.accept(patience, ref); err != nil {
			t.Fatal(err)
		}
		index := a.node().CommitIndex()
		b := c.members[c.others(a.name)[0]]
		c.must("all level", c.level)
		for _, name := range c.others(b.name) {
			c.bodies.Network.Cut(b.name, name)
		}
		b.bodyDisk.Rot(ref)
		b.node().ReportLost(c.mint())
		b.node().ReportLost(ref)
		c.must("the floor", func() bool { return b.node().Floor() >= index })
		if b.node().Err() != nil {
			t.Errorf("failed: %v", b.node().Err())
		}
		// So it can start again, too, and hydrates later.
		b.kill()
		c.up(b.name)
		c.must("all level", c.level)
		c.oracle.clean()
	})
}
