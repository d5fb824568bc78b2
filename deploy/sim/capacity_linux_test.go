package sim

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// mount gives a node a file system of its own, of that size, for its data.
func (s *story) mount(name string, size mail.ByteSize) {
	s.t.Helper()
	dir := s.config(name).DataDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := unix.Mount("holdfast", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)); err != nil {
		if os.Getenv("CI") == "" {
			s.t.Skipf("no file system of a bounded size can be mounted here: %v", err)
		}
		s.t.Fatal(err)
	}
	// Whatever becomes of the nodes: who still writes to it holds memory only.
	s.t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			s.t.Error(err)
		}
	})
}

// freeOf returns how many per cent of a node's file system are free.
func (s *story) freeOf(name string) float64 {
	s.t.Helper()
	var fs unix.Statfs_t
	if err := unix.Statfs(s.config(name).DataDir, &fs); err != nil {
		s.t.Fatal(err)
	}
	return 100 * float64(fs.Bavail) / float64(fs.Blocks)
}

// TestDisksFillUp fills real file systems through the front door: a small one, a
// middling one, and one on which there is always room. Mail is refused with 452
// 4.3.1 long before a write fails, by the roomy node, too, once the two others
// are low; the small one keeps its tenth while the others go on without it. What
// Raft writes is still written, a change of the servers for one, and by a node
// that is started again. When the mail has gone there is room, and all take more.
func TestDisksFillUp(t *testing.T) {
	const (
		small, middling, roomy = "n1", "n2", "n3"
		letterBytes            = 512 << 10
		// lettersMax are more than the roomy file system could hold.
		lettersMax = 500
		// greetingsMax is how often a node may say in its greeting that it cannot take
		// mail now.
		greetingsMax = 5
		// keptMin is less than the tenth of the small one that is kept, by a letter that
		// was under way when the watch looked, and the 4 MiB that a file which grows
		// has set aside for it.
		keptMin = 5
	)
	tell(t, 54, func(t *testing.T, s *story) {
		s.host, s.measured = true, true
		s.mount(small, 96*mail.MiB)
		s.mount(middling, 128*mail.MiB)
		s.mount(roomy, 320*mail.MiB)
		s.begin()
		lowest := map[string]float64{small: 100, middling: 100, roomy: 100}
		look := func() {
			for name := range lowest {
				lowest[name] = min(lowest[name], s.freeOf(name))
			}
		}
		filling := strings.Repeat(strings.Repeat("x", 62)+"\r\n", letterBytes/64)
		var letters []letterTo
		refusals, greetings := map[string]int{}, 0
		// A node that refuses is not asked for a while; when all do, it is over.
		for n := 0; len(refusals) < len(nodeNames) && n < lettersMax; n++ {
			name := nodeNames[n%len(nodeNames)]
			if refusals[name] > 0 {
				continue
			}
			l := letterTo{to: fmt.Sprintf("r%d@example.org", n), text: fmt.Sprintf("letter %d\r\n%send", n, filling)}
			switch a := s.give(name, l, thenRead); {
			case a.accepted():
				letters = append(letters, l)
			case a.code == 452 && a.stage == "mail" && strings.HasPrefix(a.text, "4.3.1"):
				refusals[name]++
				t.Logf("%s refuses after %d letters; free: %.1f", name, len(letters), []float64{s.freeOf(small), s.freeOf(middling), s.freeOf(roomy)})
			case a.code == 421 && a.stage == "banner" && greetings < greetingsMax:
				greetings++ // a leader whose disk is low has handed over: for a moment nobody leads
			default:
				t.Fatalf("letter %d to %s: %+v", n, name, a)
			}
			look()
			time.Sleep(3 * time.Second) // the watch looks, and the others hear of it
		}
		if len(refusals) < len(nodeNames) {
			t.Fatalf("%d letters were taken, refusals: %v", len(letters), refusals)
		}
		for _, name := range nodeNames {
			s.mustRefuse(name)
		}
		if free := s.freeOf(roomy); free < 50 {
			t.Errorf("%s was to be roomy, and has %.1f per cent free", roomy, free)
		}

		// What is kept is for this.
		ctx, cancel := context.WithTimeout(s.ctx, time.Hour)
		defer cancel()
		for n := range 100 {
			d := fsm.Domain{Name: mail.Domain(fmt.Sprintf("%s%d.test", strings.Repeat("d", 50), n)), Targets: []fsm.Target{{Host: "192.0.2.1", Port: 25}}}
			if err := s.Do(ctx, fsm.PutDomain{Domain: d}); err != nil {
				t.Fatal(err)
			}
			if err := s.Do(ctx, fsm.RemoveDomain{Name: d.Name}); err != nil {
				t.Fatal(err)
			}
		}
		settings := fsm.DefaultSettings()
		settings.RetryMax = settings.RetryMin
		s.do(fsm.PutSettings{Settings: settings})
		leader, _ := s.leader()
		if err := s.node(leader).node.Member().Node().Snapshot(ctx); err != nil {
			t.Errorf("no room for a snapshot: %v", err)
		}
		if err := s.Stop(small); err != nil {
			t.Fatal(err)
		}
		s.start(small)
		s.await(time.Minute, "all have applied it", func() bool {
			for _, name := range nodeNames {
				if s.member(name).Settings().RetryMax != settings.RetryMin {
					return false
				}
			}
			return true
		})
		s.change(s.node(roomy).node.Member(), peer.Membership{Action: peer.MemberRemove, Name: small, Force: true})
		s.await(time.Minute, "two servers", func() bool { return len(s.node(roomy).node.Member().Node().Servers()) == 2 })
		look()
		if err := s.Stop(small); err != nil {
			t.Fatal(err)
		}
		for name, free := range lowest {
			t.Logf("%s: never less than %.1f per cent free", name, free)
			if free < keptMin {
				t.Errorf("%s: only %.1f per cent were kept", name, free)
			}
		}

		s.primaryUp()
		s.await(3*time.Hour, "the queue is empty", func() bool {
			return s.member(middling).Totals().Live == 0 && s.member(roomy).Totals().Live == 0
		})
		time.Sleep(2 * time.Minute) // whoever had more to send would
		for _, l := range letters {
			if n := len(s.arrived.of(l.to)); n != 1 {
				t.Errorf("%s arrived %d times", l.to, n)
			}
		}
		for _, name := range []string{middling, roomy} {
			s.await(time.Hour, name+" has room", func() bool { return s.freeOf(name) > 50 })
			s.mustGive(name, letterTo{to: "again@example.org", text: "room again on " + name}, thenVanish)
		}
	})
}
