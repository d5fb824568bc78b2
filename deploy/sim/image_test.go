package sim

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
	"github.com/holdfast-mx/holdfast/fsm"
)

// image copies what Raft has on a node's disk, as an image of the disk would.
// The bodies are not what matters: those that an old copy lacks are missed.
func (s *story) image(name string) *clustertest.RaftDisk { return s.disks[name].raft.Copy() }

func (s *story) serverID(name string) fsm.ServerID {
	return fsm.ServerID(s.node(name).node.Member().Node().ID())
}

// awaitRecorded waits until every node knows of the starts of all.
func (s *story) awaitRecorded() {
	s.t.Helper()
	for _, name := range nodeNames {
		id, number := s.serverID(name), s.disks[name].raft.Number("HoldfastStart")
		for _, other := range nodeNames {
			s.await(time.Minute, fmt.Sprintf("%s knows of start %d of %s", other, number, name), func() bool { return s.member(other).Start(id) == number })
		}
	}
}

// votes is what a disk says of votes.
func votes(d *clustertest.RaftDisk) [2]uint64 {
	return [2]uint64{d.Number("LastVoteTerm"), d.Number("CurrentTerm")}
}

// A node is started on an old copy of its data directory. It is refused before
// it can vote or acknowledge anything, says why, and what to do; the others go
// on, and nothing that got a 250 is lost.
func TestOldImageIsRefused(t *testing.T) {
	for _, of := range []string{"an earlier start", "this start"} {
		for _, leads := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, leads=%v", of, leads), func(t *testing.T) {
				tell(t, 41, func(t *testing.T, s *story) {
					s.begin()
					s.awaitRecorded()
					leader, others := s.leader()
					name := leader
					if !leads {
						name = others[0]
					}
					image := s.image(name)
					if of == "an earlier start" {
						s.PowerCut(name)
						s.start(name)
						s.awaitReady(nodeNames...)
						s.awaitRecorded()
					}
					var given []letterTo
					for i := range 5 {
						l := letterTo{to: fmt.Sprintf("dora%d@example.org", i), text: fmt.Sprint("letter ", i)}
						s.mustGive(nodeNames[i%3], l, thenVanish)
						given = append(given, l)
					}
					time.Sleep(10 * time.Second) // it is known everywhere how far everybody is
					s.PowerCut(name)
					if of == "an earlier start" {
						// What they saw with their own eyes is gone; what is in their log
						// is not.
						for _, other := range othersThan(name) {
							s.PowerCut(other)
							s.start(other)
						}
						s.awaitReady(othersThan(name)...)
					}
					s.disks[name].raft = image
					before := votes(image)
					err := s.Start(s.ctx, name)
					if !errors.Is(err, consensus.ErrOutdated) || !errors.Is(err, node.ErrDisk) || !strings.Contains(fmt.Sprint(err), "new incarnation") {
						t.Fatalf("started: %v", err)
					}
					if votes(image) != before {
						t.Errorf("votes %v, were %v", votes(image), before)
					}
					s.giveUntilTaken(letterTo{to: "eve@example.org", text: "and it goes on"}, thenVanish, othersThan(name)...)
					s.primaryUp()
					for _, l := range given {
						s.await(time.Hour, l.to+" is delivered", func() bool { return len(s.arrived.of(l.to)) > 0 })
					}
				})
			})
		}
	}
}

// The node reaches nobody when it is started on the old copy, and so begins to
// take part. As soon as it meets one that knows better, Raft's connections are
// refused, and it ends.
func TestOldImageMeetsTheOthersLater(t *testing.T) {
	tell(t, 42, func(t *testing.T, s *story) {
		s.begin()
		s.awaitRecorded()
		_, others := s.leader()
		name := others[0]
		image := s.image(name)
		for range 2 {
			s.PowerCut(name)
			s.start(name)
			s.awaitReady(nodeNames...)
			s.awaitRecorded()
		}
		s.PowerCut(name)
		s.disks[name].raft = image
		s.cutOff(name)
		s.start(name)
		time.Sleep(time.Minute)
		before := votes(image)
		s.network.HealAll()
		// The others restart as well: what they know they have to read first.
		for _, other := range othersThan(name) {
			s.PowerCut(other)
			s.start(other)
		}
		if err := s.fallen(name); !errors.Is(err, consensus.ErrOutdated) || !errors.Is(err, node.ErrDisk) {
			t.Errorf("failed with %v", err)
		}
		s.PowerCut(name)
		if got := votes(image); got[0] != before[0] {
			t.Errorf("it voted in term %d, last before in %d", got[0], before[0])
		}
		// With an empty directory it comes back as another server.
		s.Wipe(name)
		s.start(name)
		s.awaitReady(othersThan(name)...)
		if id := s.serverID(name); s.member(othersThan(name)[0]).Start(id) != 0 {
			t.Errorf("%s is known", id)
		}
		s.mustGive(othersThan(name)[0], letterTo{to: "eve@example.org", text: "and it goes on"}, thenVanish)
	})
}

// A node that keeps its disk is never taken for an old copy, however often and
// in whatever order nodes are ended and started.
func TestRestartsAreNoOldImages(t *testing.T) {
	tell(t, 43, func(t *testing.T, s *story) {
		s.begin()
		for range 12 {
			order := s.random.Perm(3)
			ended := order[:1+s.random.IntN(3)]
			for _, i := range ended {
				s.crash(nodeNames[i])
			}
			time.Sleep(time.Duration(s.random.IntN(5000)) * time.Millisecond)
			for _, i := range ended {
				s.start(nodeNames[i])
				time.Sleep(time.Duration(s.random.IntN(2000)) * time.Millisecond)
			}
			s.giveUntilTaken(letterTo{to: "dora@example.org", text: "meanwhile"}, thenRead, nodeNames...)
		}
		s.awaitReady(nodeNames...)
		s.awaitRecorded()
	})
}
