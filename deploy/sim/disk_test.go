package sim

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
)

// fallen waits until a node has failed by itself, closes it as the daemon does,
// and returns why it failed.
func (s *story) fallen(name string) error {
	s.t.Helper()
	p := s.node(name)
	s.await(time.Minute, name+" fails", func() bool { return p.node.Err() != nil })
	s.fellLock.Lock()
	s.fell = nil // it was meant
	s.fellLock.Unlock()
	ctx, cancel := context.WithTimeout(s.ctx, 3*time.Second)
	defer cancel()
	if err := p.node.Close(ctx); err != nil {
		s.t.Logf("close %s: %v", name, err)
	}
	return p.node.Err()
}

// Whichever write fails, of a log entry, a vote or a body, on the leader or on
// another node: the node says 421 to whoever is connected and ends as one whose
// disk failed (exit code 74), and what got a 250 is not lost. The others go on;
// started again, the node does too.
func TestFailedWriteEndsTheNode(t *testing.T) {
	for _, what := range []string{"entry", "value", "body"} {
		for _, leads := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, leads=%v", what, leads), func(t *testing.T) {
				tell(t, 31, func(t *testing.T, s *story) {
					s.begin()
					first := letterTo{to: "dora@example.org", text: "before"}
					s.mustGive("n1", first, thenVanish)
					leader, others := s.leader()
					name := leader
					if !leads {
						name = others[0]
					}
					c, err := s.dial(name)
					if err != nil {
						t.Fatal(err)
					}
					defer c.conn.Close()
					if a := c.open(first); a.code != 250 {
						t.Fatalf("%+v", a)
					}
					lift := func() {}
					switch what {
					case "entry":
						s.node(name).raft.FailNext(1)
					case "value":
						s.node(name).raft.FailValues()
						if leads { // who votes for its successor writes one
							s.cutOff(name)
							time.Sleep(30 * time.Second)
							s.network.HealAll()
						} else {
							s.Kill(leader)
						}
					case "body":
						lift = s.disks[name].spool.Inject(clustertest.Fault{Op: clustertest.OpSync, Name: "*.seg", Err: clustertest.ErrDisk, Forever: true})
					}
					second := letterTo{to: "eve@example.org", text: "meanwhile"}
					answered := make(chan attempt, 1)
					go func() { answered <- s.giveUntilTaken(second, thenVanish, nodeNames...) }()
					if err := s.fallen(name); !errors.Is(err, node.ErrDisk) {
						t.Errorf("failed with %v, which is no disk failure", err)
					}
					code, text, err := c.reply()
					if code != 421 {
						t.Errorf("the session that was open: %d %s, %v", code, text, err)
					}
					s.PowerCut(name)
					lift()
					if what == "value" && !leads {
						s.start(leader)
					}
					<-answered
					s.start(name)
					s.awaitReady(nodeNames...)
					s.primaryUp()
					for _, l := range []letterTo{first, second} {
						if n := s.copiesOf(l); n != 1 {
							t.Errorf("%d copies of %q", n, l.text)
						}
					}
				})
			})
		}
	}
}

// The disk of the bodies hangs on the leader, Raft's does not: it gives up
// leadership, says 421 to newcomers, and mail goes on through the others.
func TestSpoolThatHangsCostsLeadership(t *testing.T) {
	tell(t, 32, func(t *testing.T, s *story) {
		s.begin()
		leader, others := s.leader()
		lift := s.disks[leader].spool.Inject(clustertest.Fault{Op: clustertest.OpSync, Name: "*.seg", Delay: 10 * time.Minute, Forever: true})
		began := time.Now()
		go s.give(leader, letterTo{to: "dora@example.org", text: "stuck"}, thenVanish)
		s.await(time.Minute, "another node leads", func() bool {
			now := s.Leader()
			return now != "" && now != leader
		})
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("after %v", took)
		}
		s.awaitReady(others...)
		a := s.give(leader, letterTo{to: "eve@example.org", text: "refused"}, thenVanish)
		if a.code != 421 || a.stage != "banner" || !strings.HasPrefix(a.text, "4.3") {
			t.Errorf("the node that hangs: %+v", a)
		}
		s.mustGive(others[0], letterTo{to: "frank@example.org", text: "through another"}, thenVanish)
		lift()
		s.await(time.Hour, leader+" is back", func() bool { return s.node(leader).node.Member().Ready() == nil })
		s.primaryUp()
		if n := s.copiesOf(letterTo{to: "frank@example.org"}); n != 1 {
			t.Errorf("%d copies", n)
		}
	})
}
