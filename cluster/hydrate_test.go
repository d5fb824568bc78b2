package cluster

import (
	"context"
	"errors"
	"log/slog"
	"math/rand"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A lair is one node's spool and queue, beside peers n2 and n3.
type lair struct {
	t       *testing.T
	disk    *clustertest.Disk
	peers   *sources
	replica *replica
	index   uint64

	spool   *spool.Spool
	bodies  *bodies
	stop    context.CancelFunc
	running sync.WaitGroup

	hydrator *hydrator
	scrubber *scrubber

	mu   sync.Mutex
	now  signs
	full bool           // what the disk is
	away []string       // in the cluster, and not seen
	lost []mail.BodyRef // whose messages the hydrator wanted held
}

// set changes what the hydrator sees.
func (l *lair) set(change func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	change()
}

// inLair runs a test with a node whose queue has that many messages, and whose
// spool has none of their bodies.
func inLair(t *testing.T, messages int, peers *sources, run func(t *testing.T, l *lair)) {
	synctest.Test(t, func(t *testing.T) {
		l := &lair{t: t, disk: clustertest.NewDisk(1), peers: peers, replica: quietReplica()}
		l.apply(fsm.PutDomain{Domain: fsm.Domain{Name: replicaDomain, MX: true}}, nil)
		for n := range messages {
			l.accept(n + 1)
		}
		l.open()
		run(t, l)
		l.close()
	})
}

func (l *lair) apply(a fsm.Action, body *mail.BodyRef) {
	l.t.Helper()
	l.index++
	if got, ok := l.replica.Apply(l.index, entry(l.t, a), body).(applied); !ok || got.result.Verdict != fsm.Done {
		l.t.Fatalf("apply %T: %+v", a, got)
	}
}

// accept adds the n-th message to the queue.
func (l *lair) accept(n int) {
	l.t.Helper()
	accept, _ := acceptOf(l.t, n)
	accept.Body = refNumber(n)
	l.apply(accept, &accept.Body)
}

// open starts the process anew on the disk.
func (l *lair) open() {
	l.t.Helper()
	log := slog.New(slog.DiscardHandler)
	var err error
	l.spool, err = spool.Open(l.disk.Mount(), "/spool", spool.Options{Now: time.Now, Random: rand.New(rand.NewSource(1)), Log: log})
	if err != nil {
		l.t.Fatal(err)
	}
	var ctx context.Context
	ctx, l.stop = context.WithCancel(l.t.Context())
	l.bodies = newBodies(ctx, l.spool, l.peers, "n1", func() []string { return []string{"n2", "n3"} }, func() bool { return false }, log)
	l.hydrator = &hydrator{
		log: log, bodies: l.bodies, replica: l.replica, ready: func() bool { return true },
		signs: func() (s signs) { l.set(func() { s = l.now }); s.foundBad = l.spool.FoundBad(); return s },
		full:  func() (full bool) { l.set(func() { full = l.full }); return full },
		servers: func() (names []string) {
			l.set(func() { names = append([]string{"n2", "n3"}, l.away...) })
			return names
		},
		hold: func(_ context.Context, ref mail.BodyRef) { l.set(func() { l.lost = append(l.lost, ref) }) },
		now:  time.Now, throttle: &throttle{rate: mail.GiB}, memory: &byteBudget{max: hydrateBytesMax},
	}
	l.scrubber = &scrubber{
		log: log, bodies: l.bodies, replica: l.replica, rank: func() (int, int) { return 0, 3 }, now: time.Now,
		throttle: &throttle{rate: mail.GiB}, wake: make(chan struct{}, 1),
	}
	l.running.Go(func() { l.scrubber.run(ctx) })
}

func (l *lair) hydrate() { l.running.Go(func() { l.hydrator.run(l.bodies.ctx) }) }

func (l *lair) close() {
	l.t.Helper()
	l.stop()
	l.running.Wait()
	l.bodies.wait()
	if err := l.spool.Close(); err != nil {
		l.t.Fatal(err)
	}
}

// held counts the first n messages' bodies that are here.
func (l *lair) held(n int) (held int) {
	for k := range n {
		if l.spool.Held(refNumber(k + 1)) {
			held++
		}
	}
	return held
}

// put stores the n-th message's body here.
func (l *lair) put(n int) {
	l.t.Helper()
	if err := l.spool.Put(refNumber(n), bodyNumber(idOf(n))); err != nil {
		l.t.Fatal(err)
	}
}

// flip changes an octet of the n-th message's body on the disk.
func (l *lair) flip(n int) {
	l.t.Helper()
	if !l.disk.DamageOctets("/spool", []byte("body of "+idOf(n).String())) {
		l.t.Fatalf("body %d is not on the disk", n)
	}
}

// wantedHeld returns the bodies whose messages were to be held.
func (l *lair) wantedHeld() (lost []mail.BodyRef) {
	l.set(func() { lost = slices.Clone(l.lost) })
	return lost
}

func (l *lair) countedAt() time.Time {
	l.hydrator.mu.Lock()
	defer l.hydrator.mu.Unlock()
	return l.hydrator.countedAt
}

func (l *lair) report() peer.Hydration {
	_, r := l.hydrator.Report()
	return r
}

var bothPeers = map[string]bool{"n2": true, "n3": true}

// All that is missing comes, from both peers, a few at a time, the oldest first.
func TestHydrationFetchesWhatIsMissing(t *testing.T) {
	const messages = liveWindow + 500
	peers := &sources{holds: bothPeers, takes: 10 * time.Millisecond}
	inLair(t, messages, peers, func(t *testing.T, l *lair) {
		l.put(2)
		if r := l.report(); r.Known {
			t.Error("known before it was counted")
		}
		l.hydrate()
		time.Sleep(hydrateEvery + 100*time.Millisecond)
		if r := l.report(); !r.Known || r.Missing == 0 || r.Missing+r.Fetched != messages-1 || r.Fetched == 0 {
			t.Errorf("under way: %+v", r)
		}
		time.Sleep(time.Minute)
		if n := l.held(messages); n != messages {
			t.Errorf("%d of %d bodies are here", n, messages)
		}
		if r := l.report(); !r.Known || r.Missing != 0 || r.MissingBytes != 0 || r.Fetched != messages-1 || r.LastError != "" {
			t.Errorf("at the end: %+v", r)
		}
		_, wanted, most := peers.seen()
		if most != hydrateBodiesMax {
			t.Errorf("up to %d fetches at a time, want %d", most, hydrateBodiesMax)
		}
		for _, name := range []string{"n2", "n3"} {
			if n := peers.count(name); n < messages/4 {
				t.Errorf("%s was asked for %d of %d", name, n, messages)
			}
		}
		for i, ref := range wanted[:messages/2] {
			if id := ref.ID; id.Compare(idOf(i+2+2*hydrateBodiesMax)) > 0 {
				t.Fatalf("body %s was fetched as number %d", id, i)
			}
		}
	})
}

// The process ends in the midst of it: the next one asks for the rest only.
func TestHydrationGoesOnAfterARestart(t *testing.T) {
	const messages = 200
	peers := &sources{holds: bothPeers, takes: 100 * time.Millisecond}
	inLair(t, messages, peers, func(t *testing.T, l *lair) {
		l.hydrate()
		time.Sleep(hydrateEvery + time.Second)
		l.close()
		before, _, _ := peers.seen()
		l.open()
		kept := l.held(messages)
		if kept == 0 || kept == messages {
			t.Fatalf("%d bodies are here after the restart", kept)
		}
		l.hydrate()
		time.Sleep(time.Minute)
		if n := l.held(messages); n != messages {
			t.Errorf("%d of %d bodies are here", n, messages)
		}
		asked, _, _ := peers.seen()
		if n := asked - before; n != messages-kept {
			t.Errorf("%d fetches for the %d that were missing", n, messages-kept)
		}
	})
}

// A peer that sends something else, or whose copy is damaged, is passed over;
// what nobody has is told, with who was not asked.
func TestHydrationAsksAnotherPeer(t *testing.T) {
	peers := &sources{holds: map[string]bool{"n3": true}, wrong: "n2"}
	inLair(t, 20, peers, func(t *testing.T, l *lair) {
		l.set(func() { l.away = []string{"n4"} })
		l.hydrate()
		time.Sleep(time.Minute)
		if n := l.held(20); n != 20 {
			t.Errorf("%d of 20 bodies are here", n)
		}
		if n := peers.count("n4"); n != 0 {
			t.Errorf("n4 was asked %d times though n3 has them", n)
		}
		peers.set("n3", false)
		peers.setDead("n4")
		l.accept(21)
		l.set(func() { l.now.exempt++ })
		time.Sleep(time.Minute)
		r := l.report()
		if !r.Known || r.Missing != 1 || r.NotFound != 1 || r.WaitingFor != "n4" || r.LastError == "" {
			t.Errorf("%+v", r)
		}
		if all := l.hydrator.absent.list(); len(all) != 1 || all[0].nowhere() || !slices.Equal(all[0].unknown, []string{"n4"}) {
			t.Errorf("%+v", all)
		}
		if lost := l.wantedHeld(); len(lost) > 0 {
			t.Errorf("%v is to be held though n4 may have it", lost)
		}
		// n4 answers now, and has none either.
		peers.set("n4", false)
		peers.setDead("")
		time.Sleep(2 * hydrateRetryMax)
		if all := l.hydrator.absent.list(); len(all) != 1 || !all[0].nowhere() {
			t.Errorf("%+v", all)
		}
		if r := l.report(); r.NotFound != 1 || r.Lost != 1 || r.WaitingFor != "" {
			t.Errorf("%+v", r)
		}
		if lost := l.wantedHeld(); len(lost) == 0 || lost[0] != refNumber(21) {
			t.Errorf("held for want of a copy: %v", lost)
		}
		// It is looked for again and again, without another look at the queue.
		counted := l.countedAt()
		before, _, _ := peers.seen()
		time.Sleep(3 * hydrateRetryMax)
		if asked, _, _ := peers.seen(); asked == before || l.countedAt() != counted {
			t.Errorf("asked %d times more, counted at %s and %s", asked-before, counted, l.countedAt())
		}
		// It finds the body at last.
		peers.set("n4", true)
		time.Sleep(2 * hydrateRetryMax)
		if r := l.report(); !r.Known || r.Missing != 0 || r.NotFound != 0 || !l.spool.Held(refNumber(21)) {
			t.Errorf("%+v", r)
		}
		// And of one that is finished nobody needs the body.
		peers.set("n4", false)
		l.accept(22)
		l.set(func() { l.now.exempt++ })
		time.Sleep(2 * hydrateRetryMax)
		l.apply(fsm.Remove{ID: idOf(22)}, nil)
		time.Sleep(2 * hydrateRetryMax)
		if r := l.report(); !r.Known || r.Missing != 0 || r.NotFound != 0 {
			t.Errorf("%+v", r)
		}
	})
}

// A node says that it lacks nothing only where that is so: each thing by which
// it may have come to lack a body makes it count anew first.
func TestHydrationKnowsOnlyWhatItCounted(t *testing.T) {
	peers := &sources{holds: bothPeers}
	inLair(t, 5, peers, func(t *testing.T, l *lair) {
		l.hydrate()
		time.Sleep(2 * hydrateEvery)
		synctest.Wait()
		complete := func() bool { r := l.report(); return r.Known && r.Missing == 0 }
		if !complete() {
			t.Fatalf("%+v", l.report())
		}
		for name, happens := range map[string]func(){
			"an entry was appended without its body": func() { l.set(func() { l.now.exempt++ }) },
			"a snapshot was restored":                func() { l.set(func() { l.now.restores++ }) },
			"a body turns out damaged": func() {
				l.flip(3)
				if err := l.spool.Verify(refNumber(3)); !errors.Is(err, spool.ErrCorrupt) {
					t.Errorf("verify: %v", err)
				}
			},
		} {
			happens()
			if complete() {
				t.Errorf("%s: complete without a new count", name)
			}
			time.Sleep(2 * hydrateEvery)
			synctest.Wait()
			if !complete() || l.held(5) != 5 {
				t.Errorf("%s: %+v", name, l.report())
			}
		}
		// What was appended without its body and is not applied yet is not counted.
		l.set(func() { l.now.exempt++; l.now.exemptIndex = l.index + 1 })
		time.Sleep(2 * hydrateEvery)
		if complete() {
			t.Error("complete before the entry was applied")
		}
		l.accept(6)
		time.Sleep(2 * hydrateEvery)
		synctest.Wait()
		if !complete() || !l.spool.Held(refNumber(6)) {
			t.Errorf("%+v", l.report())
		}
	})
}

// An entry that came without its body makes the node look at what was accepted
// since the last count, and at nothing before: a long queue is not looked through
// for each. Everything else, and time, makes it look at all.
func TestHydrationCountsWhatIsNew(t *testing.T) {
	peers := &sources{holds: bothPeers}
	inLair(t, 5, peers, func(t *testing.T, l *lair) {
		h := l.hydrator
		h.count()
		if h.missing != 5 || len(h.todo) != 5 {
			t.Fatalf("%d missing, %d named", h.missing, len(h.todo))
		}
		for n, do := range []struct {
			what  string
			done  func()
			whole bool
		}{
			{"an entry was appended without its body", func() { l.now.exempt++ }, false},
			{"another, that is not applied", func() { l.now.exempt++; l.now.exemptIndex = l.index + 3 }, false},
			{"a snapshot was restored", func() { l.now.restores++ }, true},
			{"not all that is missing is named", func() { h.todo = h.todo[1:] }, true},
			{"it is long ago", func() { time.Sleep(hydrateAgain) }, true},
		} {
			do.done()
			l.accept(6 + n)
			if from, _, _, _ := h.since(h.signs()); from != 0 == do.whole {
				t.Errorf("%s: looks from entry %d on", do.what, from)
			}
			h.count()
			if h.missing != 6+n || len(h.todo) != 6+n || h.todo[5+n] != refNumber(6+n) {
				t.Errorf("%s: %d missing, %d named", do.what, h.missing, len(h.todo))
			}
		}
	})
}

// Not more octets a second than the operator allows, and none where the disk has
// no room.
func TestHydrationIsBounded(t *testing.T) {
	peers := &sources{holds: bothPeers}
	inLair(t, 200, peers, func(t *testing.T, l *lair) {
		l.set(func() { l.full = true })
		l.hydrate()
		time.Sleep(time.Minute)
		asked, _, _ := peers.seen()
		if r := l.report(); asked > 0 || r.Missing != 200 || r.LastError != errNoSpace.Error() || r.NotFound != 0 {
			t.Errorf("%d fetches, %+v", asked, r)
		}
		size := refNumber(1).Size
		l.hydrator.throttle.mu.Lock()
		l.hydrator.throttle.rate = 10 * size // ten bodies a second
		l.hydrator.throttle.mu.Unlock()
		l.set(func() { l.full = false })
		time.Sleep(hydrateRetryMax) // it looks again some time in here
		before, began := l.held(200), time.Now()
		for l.held(200) < 200 && time.Since(began) < time.Minute {
			time.Sleep(100 * time.Millisecond)
		}
		took := time.Since(began).Seconds()
		if rate := float64(200-before) / took; rate > 11 {
			t.Errorf("%d bodies in %.1f s, and ten a second are allowed", 200-before, took)
		}
	})
}

// What a look at the whole queue costs, for a node that lacks all of it, and what
// a report costs afterwards. Neither is on the goroutine that applies entries.
func BenchmarkHydrationOf100000(b *testing.B) {
	const messages = 100_000
	log := slog.New(slog.DiscardHandler)
	r := quietReplica()
	index := uint64(1)
	r.Apply(index, entry(b, fsm.PutDomain{Domain: fsm.Domain{Name: replicaDomain, MX: true}}), nil)
	for n := range messages {
		index++
		accept, _ := acceptOf(b, n+1)
		accept.Body = refNumber(n + 1)
		r.Apply(index, entry(b, accept), &accept.Body)
	}
	sp, err := spool.Open(clustertest.NewDisk(1).Mount(), "/spool", spool.Options{Now: time.Now, Random: rand.New(rand.NewSource(1)), Log: log})
	if err != nil {
		b.Fatal(err)
	}
	defer sp.Close()
	h := &hydrator{
		log: log, replica: r, signs: func() signs { return signs{} },
		bodies: newBodies(b.Context(), sp, &sources{}, "n1", func() []string { return nil }, func() bool { return false }, log),
	}
	b.Run("count", func(b *testing.B) {
		for b.Loop() {
			h.count()
		}
		if h.left() != messages {
			b.Fatalf("%d missing", h.left())
		}
	})
	for _, ref := range h.todo {
		h.absent.note(ref, &fetchError{ref: ref, unknown: []string{"n2"}}, time.Now())
	}
	b.Run("report", func(b *testing.B) {
		for b.Loop() {
			h.Report()
		}
	})
}
