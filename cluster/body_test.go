package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Sources are the peers of a node, as far as fetching goes.
type sources struct {
	mu      sync.Mutex
	holds   map[string]bool // by peer
	takes   time.Duration
	wrong   string // this peer sends other octets
	dead    string // this peer does not answer
	asked   []string
	wanted  []mail.BodyRef
	running int
	most    int
}

// count tells how often a peer was asked.
func (s *sources) count(name string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.asked {
		if one == name {
			n++
		}
	}
	return n
}

// seen returns how many fetches there were, of which bodies, and how many at a
// time.
func (s *sources) seen() (asked int, wanted []mail.BodyRef, most int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.asked), slices.Clone(s.wanted), s.most
}

func (s *sources) setDead(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = name
}

// set says whether a peer holds all bodies or none.
func (s *sources) set(name string, holds bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]bool{name: holds}
	for n, h := range s.holds {
		if n != name {
			all[n] = h
		}
	}
	s.holds = all
}

func (s *sources) Fetch(ctx context.Context, from string, ref mail.BodyRef, _ peer.Urgency) (*mail.Body, error) {
	s.mu.Lock()
	s.asked = append(s.asked, from)
	s.wanted = append(s.wanted, ref)
	s.running++
	s.most = max(s.most, s.running)
	holds, dead := s.holds[from], from == s.dead
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.running--
		s.mu.Unlock()
	}()
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	switch {
	case dead:
		return nil, fmt.Errorf("%w: %s", peer.ErrUnreachable, from)
	case from == s.wrong:
		return nil, fmt.Errorf("%w: %s", peer.ErrMismatch, from)
	case !holds:
		return nil, fmt.Errorf("%w: %s", peer.ErrNotHeld, from)
	}
	return bodyNumber(ref.ID), nil
}

// bodyNumber is the body that goes with an id.
func bodyNumber(id mail.QueueID) *mail.Body {
	return mail.NewBody(fmt.Appendf(nil, "body of %s\r\n", id))
}

func refNumber(n int) mail.BodyRef { return bodyNumber(idOf(n)).Ref(idOf(n)) }

// inBodies runs a test with the bodies of node n1 beside n2 and n3.
func inBodies(t *testing.T, peers *sources, run func(t *testing.T, b *bodies)) {
	synctest.Test(t, func(t *testing.T) {
		log := slog.New(slog.DiscardHandler)
		sp, err := spool.Open(clustertest.NewDisk(1).Mount(), "/spool", spool.Options{
			Now: time.Now, Random: rand.New(rand.NewSource(1)), Log: log,
		})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		b := newBodies(ctx, sp, peers, "n1", func() []string { return []string{"n1", "n2", "n3"} }, func() bool { return false }, log)
		run(t, b)
		cancel()
		b.wait()
		if err := sp.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// The named server is asked first, then every other one, this node never.
func TestFetchAsksTheNamedServerFirst(t *testing.T) {
	peers := &sources{holds: map[string]bool{"n2": true}}
	inBodies(t, peers, func(t *testing.T, b *bodies) {
		ref := refNumber(1)
		arrived := b.Arrived(ref)
		b.Want(ref, consensus.ServerID("n3/abc"))
		<-arrived
		synctest.Wait()
		if want := []string{"n3", "n2"}; !slices.Equal(peers.asked, want) {
			t.Errorf("asked %v, want %v", peers.asked, want)
		}
		if err := b.Verify(ref); err != nil {
			t.Error(err)
		}
		b.Want(ref, "") // held already
		synctest.Wait()
		if len(peers.asked) != 2 {
			t.Errorf("asked %v for a body that is held", peers.asked)
		}
	})
}

// However often a body is wanted, one fetch is under way; and however many are
// wanted, so many as there are places.
func TestFetchesAreBounded(t *testing.T) {
	peers := &sources{holds: map[string]bool{"n2": true}, takes: time.Second}
	inBodies(t, peers, func(t *testing.T, b *bodies) {
		var all []<-chan struct{}
		for range 3 {
			for n := range 5 * fetchesMax {
				all = append(all, b.Arrived(refNumber(n)))
				b.Want(refNumber(n), "n2/abc")
			}
		}
		for _, arrived := range all {
			<-arrived
		}
		synctest.Wait()
		if len(peers.asked) != 5*fetchesMax || peers.most != fetchesMax {
			t.Errorf("%d fetches, up to %d at a time; want %d, up to %d", len(peers.asked), peers.most, 5*fetchesMax, fetchesMax)
		}
	})
}

// A peer that sends other octets is passed over like one that has none.
func TestFetchTakesNoOtherBody(t *testing.T) {
	peers := &sources{holds: map[string]bool{"n3": true}, wrong: "n2"}
	inBodies(t, peers, func(t *testing.T, b *bodies) {
		if err := b.Repair(t.Context(), refNumber(1)); err != nil {
			t.Fatal(err)
		}
		if err := b.Verify(refNumber(1)); err != nil {
			t.Error(err)
		}
		peers.holds = nil
		if err := b.Repair(t.Context(), refNumber(2)); err == nil || b.Held(refNumber(2)) {
			t.Errorf("a body that nobody has: %v, held %v", err, b.Held(refNumber(2)))
		}
	})
}

// A delivery that needs a body which is not here waits for it as long as it is
// under way; where nobody has it, not at all, and never for ever.
func TestOpenWaitsForABodyAndGivesUp(t *testing.T) {
	peers := &sources{holds: map[string]bool{"n2": true}, takes: openPatience / 2}
	inBodies(t, peers, func(t *testing.T, b *bodies) {
		r, err := b.open(t.Context(), refNumber(1))
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		peers.holds = nil
		peers.takes = time.Millisecond
		began := time.Now()
		if _, err := b.open(t.Context(), refNumber(2)); !errors.Is(err, spool.ErrNotHeld) {
			t.Errorf("a body that nobody has: %v", err)
		}
		if took := time.Since(began); took > 2*peers.takes {
			t.Errorf("waited %s for a body that nobody has", took)
		}
		peers.takes = time.Hour
		began = time.Now()
		if _, err := b.open(t.Context(), refNumber(3)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("peers that do not answer: %v", err)
		}
		if took := time.Since(began); took > openPatience {
			t.Errorf("waited %s", took)
		}
	})
}
