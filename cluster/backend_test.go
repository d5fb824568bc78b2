package cluster

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// alone is a directory that knows this node only.
type alone struct {
	mu   sync.Mutex
	self Sighting
}

func (d *alone) Sightings() []Sighting {
	d.mu.Lock()
	defer d.mu.Unlock()
	return []Sighting{d.self}
}

func (d *alone) Announce(hasState bool, sees string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.self.HasState, d.self.Sees, d.self.Alive = hasState, sees, true
}
func (d *alone) Changed() <-chan struct{} { return nil }

// spacious is a disk with room.
type spacious struct{}

func (spacious) Low() bool  { return false }
func (spacious) Full() bool { return false }

type memberStream struct {
	net.Listener
	host *clustertest.Host
}

func (s memberStream) Dial(ctx context.Context, _ consensus.ServerID, address string) (net.Conn, error) {
	return s.host.Dial(ctx, address)
}

type seededReader struct{ random *rand.ChaCha8 }

func (r seededReader) Read(p []byte) (int, error) { return r.random.Read(p) }

// leading runs a test with a member that leads a cluster of one, and has the
// relay domain of the tests.
func leading(t *testing.T, test func(t *testing.T, b *Backend, m *Member)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		random := seededReader{rand.NewChaCha8([32]byte{1})}
		log := slog.New(slog.DiscardHandler)
		host := clustertest.NewNetwork(1, time.Millisecond, 2*time.Millisecond).Host("n1")
		listener, err := host.Listen(7420)
		if err != nil {
			t.Fatal(err)
		}
		s, err := spool.Open(clustertest.NewDisk(1).Mount(), "spool", spool.Options{Random: random})
		if err != nil {
			t.Fatal(err)
		}
		peers := peer.NewPeers(peer.Config{
			Dial:    func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("nobody is there") },
			Address: func(string) (string, bool) { return "", false },
		})
		store := clustertest.NewRaftDisk(1, time.Millisecond).Open()
		b := NewBackend(s, spacious{})
		m, err := Start(t.Context(), Config{
			ID: "n1/1", Log: log, Spool: s, Peers: peers,
			Directory: &alone{self: Sighting{Name: "n1", Incarnation: "1", Address: "n1:7420", Alive: true}},
			Starts:    NewStarts(), Start: 1, Space: spacious{},
			Stores:          consensus.Stores{Log: store, Stable: store, Snapshots: store},
			Stream:          memberStream{listener, host},
			BootstrapExpect: 1, LeaseDuration: time.Minute, LeaseBatchMax: 64, TickEvery: 30 * time.Second,
			OrphanAge: time.Hour, Now: time.Now, Entropy: io.Reader(random),
		})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			_ = m.Close(context.Background())
			_ = peers.Close()
			_ = s.Close()
		}()
		b.Attach(m)
		for m.Ready() != nil || !m.leading.Load() {
			time.Sleep(50 * time.Millisecond)
		}
		if got, err := m.Do(t.Context(), fsm.PutDomain{Domain: fsm.Domain{Name: replicaDomain, MX: true}}); err != nil || got.Verdict != fsm.Done {
			t.Fatal(got, err)
		}
		time.Sleep(5 * time.Second) // what a new leader records by itself is recorded
		test(t, b, m)
	})
}

// ofPeer is an Accept of another node, with its body.
func ofPeer(t *testing.T, n int) (peer.Proposal, mail.BodyRef, *mail.Body) {
	t.Helper()
	accept, _ := acceptOf(t, n)
	body := mail.NewBody([]byte{byte(n), '\r', '\n'})
	return peer.Proposal{Command: encoded(t, fsm.Command{Node: "n2", Action: accept}), Body: &accept.Body}, accept.Body, body
}

func settling(t *testing.T, node fsm.NodeName, ids ...mail.QueueID) peer.Proposal {
	t.Helper()
	return peer.Proposal{Command: encoded(t, fsm.Command{Node: node, Settled: ids, Action: fsm.Settle{}})}
}

func TestBackendProposes(t *testing.T) {
	refused := func(o peer.Outcome) bool {
		return o.Result == nil && errors.Is(o.Err, peer.ErrNotAppended) && !errors.Is(o.Err, peer.ErrOutcomeUnknown)
	}
	verdict := func(o peer.Outcome) fsm.Verdict {
		r, err := fsm.DecodeResult(o.Result)
		if o.Err != nil || err != nil {
			t.Errorf("%v, %v", o.Err, err)
		}
		return r.Verdict
	}
	leading(t, func(t *testing.T, b *Backend, m *Member) {
		put := func(ref mail.BodyRef, body *mail.Body) {
			if err := m.spool.Put(ref, body); err != nil {
				t.Error(err)
			}
		}
		known := func(ref mail.BodyRef) bool { return m.View().Known(ref.ID) }
		appended := func() uint64 { return m.node.LastIndex() }

		// What names no body and is refused takes all behind it with it.
		first, firstRef, body := ofPeer(t, 1)
		put(firstRef, body)
		last := appended()
		for name, bad := range map[string]peer.Proposal{
			"another's":  settling(t, "n3"),
			"unreadable": {Command: []byte("garbage")},
			"a leader's": {Command: encoded(t, fsm.Command{Node: "n2", Action: fsm.Tick{Elapsed: 1}})},
		} {
			got := b.Propose(t.Context(), "n2", []peer.Proposal{bad, first, settling(t, "n2")})
			for i, o := range got {
				if !refused(o) {
					t.Errorf("%s: proposal %d: %+v", name, i, o)
				}
			}
		}
		if appended() != last || known(firstRef) {
			t.Errorf("the log went from %d to %d", last, appended())
		}
		// What names one is refused by itself.
		wrong := first
		other := mail.NewBody([]byte("other")).Ref(firstRef.ID)
		wrong.Body = &other
		got := b.Propose(t.Context(), "n2", []peer.Proposal{settling(t, "n2"), wrong, first})
		if verdict(got[0]) != fsm.Done || !refused(got[1]) || verdict(got[2]) != fsm.Done {
			t.Errorf("%+v", got)
		}
		if appended() != last+2 {
			t.Errorf("%d entries for 2", appended()-last)
		}

		// A body that comes late is proposed when it has come, behind the rest, once.
		second, secondRef, secondBody := ofPeer(t, 2)
		third, thirdRef, thirdBody := ofPeer(t, 3)
		put(thirdRef, thirdBody)
		last = appended()
		time.AfterFunc(backendPatience/2, func() { put(secondRef, secondBody) })
		began := time.Now()
		got = b.Propose(t.Context(), "n2", []peer.Proposal{settling(t, "n2", firstRef.ID), second, third})
		if verdict(got[0]) != fsm.Done || verdict(got[1]) != fsm.Done || verdict(got[2]) != fsm.Done {
			t.Errorf("late: %+v", got)
		}
		if appended() != last+3 || !known(secondRef) || !known(thirdRef) {
			t.Errorf("%d entries for 3", appended()-last)
		}
		if took := time.Since(began); took < backendPatience/2 || took >= backendPatience {
			t.Errorf("took %v", took)
		}

		// A body that does not come is refused for certain, and holds nobody else up
		// for good.
		fourth, fourthRef, fourthBody := ofPeer(t, 4)
		last = appended()
		got = b.Propose(t.Context(), "n2", []peer.Proposal{fourth, settling(t, "n2")})
		if !refused(got[0]) || verdict(got[1]) != fsm.Done || appended() != last+1 {
			t.Errorf("never came: %+v, %d entries", got, appended()-last)
		}
		// It comes when the caller has gone: nobody may append it any more.
		ctx, cancel := context.WithTimeout(t.Context(), backendPatience/4)
		defer cancel()
		got = b.Propose(ctx, "n2", []peer.Proposal{fourth})
		put(fourthRef, fourthBody)
		time.Sleep(2 * backendPatience)
		if !refused(got[0]) || known(fourthRef) || appended() != last+1 {
			t.Errorf("came too late: %+v, %d entries", got, appended()-last)
		}
		if got := b.Propose(t.Context(), "n2", nil); len(got) != 0 {
			t.Errorf("of none: %+v", got)
		}
	})
}

// TestBackendThatDoesNotLead appends nothing.
func TestBackendThatDoesNotLead(t *testing.T) {
	b := NewBackend(nil, spacious{})
	for i, o := range b.Propose(t.Context(), "n2", []peer.Proposal{settling(t, "n2"), {}}) {
		if !errors.Is(o.Err, peer.ErrNotAppended) {
			t.Errorf("proposal %d: %+v", i, o)
		}
	}
}

// counted counts the chunks that bodies have borrowed.
type counted struct{ lent *int }

func (c counted) Take(n int) []byte { *c.lent++; return make([]byte, 0, n) }
func (c counted) Give([]byte)       { *c.lent-- }

// TestRegressionSubmitGivesMemoryBack when nobody reads the body any more.
//
// It holds this defect: nobody gave back the memory of a body whose last acknowledgement
// came after its 250, and a node held far more than its budget.
func TestRegressionSubmitGivesMemoryBack(t *testing.T) {
	leading(t, func(t *testing.T, _ *Backend, m *Member) {
		lent := 0
		body := mail.NewBodyIn(counted{&lent}, 100<<10)
		_, _ = body.Write(make([]byte, 100<<10)) // Never fails.
		if lent == 0 {
			t.Fatal("nothing was borrowed")
		}
		accept, _ := acceptOf(t, 1)
		if _, err := m.Submit(t.Context(), accept.Envelope, body); err != nil {
			t.Fatal(err)
		}
		if lent != 0 {
			t.Errorf("%d chunks were not given back", lent)
		}
	})
}
