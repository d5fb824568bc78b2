package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// fetchTimeout bounds the fetch of one body from one peer, beside the time that
// its octets take at fetchRateMin.
const fetchTimeout = 60 * time.Second

// fetchRateMin is how many octets a second a peer must send: a slower one is
// given up, and the next is asked.
const fetchRateMin = 64 * mail.KiB

// fetchesMax bounds the fetches under way at once, those of the hydration aside.
const fetchesMax = 4

// pushPatience is how long a fetch of what an entry names waits for its push. It is
// short beside what the append rule's gate waits.
const pushPatience = 150 * time.Millisecond

// A fetcher gets a body from a named peer.
type fetcher interface {
	Fetch(ctx context.Context, from string, ref mail.BodyRef, u peer.Urgency) (*mail.Body, error)
}

// bodies joins the spool with what the peers hold: it is consensus.Bodies.
//
// Invariant: at most one fetch per body is under way.
type bodies struct {
	*spool.Spool
	log    *slog.Logger
	self   string
	peers  fetcher
	names  func() []string // the other servers' names, in the order to ask
	full   func() bool     // there is no room for bodies that come unasked for
	ctx    context.Context // ends the fetches
	places chan struct{}   // one per fetch under way

	failpoint controls.Failpoint

	mu       sync.Mutex
	fetching map[mail.BodyRef]chan struct{} // closed when the fetch has ended
	running  sync.WaitGroup
}

func newBodies(ctx context.Context, s *spool.Spool, peers fetcher, self string, names func() []string, full func() bool, log *slog.Logger) *bodies {
	return &bodies{
		Spool: s, log: log, self: self, peers: peers, names: names, full: full, ctx: ctx,
		places:   make(chan struct{}, fetchesMax),
		fetching: map[mail.BodyRef]chan struct{}{},
	}
}

// Want starts a fetch of the body, the named server first, unless one is under
// way. The fetch goes on when whoever wanted it has given up: the entry will be
// sent again.
//
// A full disk gets none: its node then stays behind until others have committed
// what it cannot store.
func (b *bodies) Want(ref mail.BodyRef, from consensus.ServerID) {
	b.want(ref, from.Name(), pushPatience)
}

// want is Want with what is waited for a push, and returns a channel that is
// closed when that fetch has ended, whatever came of it.
func (b *bodies) want(ref mail.BodyRef, first string, patience time.Duration) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if ended, running := b.fetching[ref]; running {
		return ended
	}
	ended := make(chan struct{})
	if b.ctx.Err() != nil || b.full() {
		close(ended)
		return ended
	}
	b.fetching[ref] = ended
	b.running.Add(1)
	go func() {
		defer b.running.Done()
		defer func() {
			b.mu.Lock()
			delete(b.fetching, ref)
			b.mu.Unlock()
			close(ended)
		}()
		// Where an entry names the body, the push is mostly under way and only a
		// little behind it.
		pushed := time.NewTimer(patience)
		defer pushed.Stop()
		select {
		case <-b.Arrived(ref):
			return
		case <-pushed.C:
		case <-b.ctx.Done():
			return
		}
		select {
		case b.places <- struct{}{}:
			defer func() { <-b.places }()
		case <-b.ctx.Done():
			return
		}
		if b.Held(ref) { // The push was faster.
			return
		}
		if err := b.fetch(b.ctx, ref, first); err != nil {
			b.log.Info("body not fetched", "queue_id", ref.ID, "cause", err)
		}
	}()
	return ended
}

// Repair gets the body from any peer, replacing a damaged copy. It is for the
// start-up check.
func (b *bodies) Repair(ctx context.Context, ref mail.BodyRef) error {
	return b.fetch(ctx, ref, "")
}

// fetch asks first, then every other server, until one has the body.
func (b *bodies) fetch(ctx context.Context, ref mail.BodyRef, first string) error {
	names := b.names()
	if first != "" {
		names = append([]string{first}, names...)
	}
	asked := map[string]bool{b.self: true}
	failed := &fetchError{ref: ref}
	for _, name := range names {
		if asked[name] {
			continue
		}
		asked[name] = true
		err := b.fetchFrom(ctx, ref, name, peer.Urgent)
		if err == nil {
			return nil
		}
		failed.add(name, err)
	}
	return failed
}

// fetchFrom gets a body from one server and stores it.
func (b *bodies) fetchFrom(ctx context.Context, ref mail.BodyRef, name string, u peer.Urgency) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout+time.Duration(ref.Size/fetchRateMin)*time.Second)
	defer cancel()
	body, err := b.peers.Fetch(ctx, name, ref, u)
	if err != nil {
		return err // says which body, and from whom
	}
	b.failpoint.At("fetch: body here")
	if err := b.Put(ref, body); err != nil {
		return fmt.Errorf("%w: body %s from %s: %w", errNotStored, ref.ID, name, err)
	}
	b.failpoint.At("fetch: body stored")
	return nil
}

// errNotStored: a body was fetched, and this node could not store it.
var errNotStored = errors.New("fetched and not stored")

// A fetchError is what each server said that was asked for a body which none of
// them gave.
type fetchError struct {
	ref     mail.BodyRef
	unknown []string // could not be asked, or did not say; the others have no good copy
	errs    []error
}

func (e *fetchError) add(name string, err error) {
	e.errs = append(e.errs, err)
	if !errors.Is(err, peer.ErrNotHeld) && !errors.Is(err, peer.ErrDamaged) && !errors.Is(err, peer.ErrMismatch) {
		e.unknown = append(e.unknown, name)
	}
}

func (e *fetchError) Error() string {
	if len(e.errs) == 0 {
		return fmt.Sprintf("body %s: no peer to ask", e.ref.ID)
	}
	texts := make([]string, len(e.errs))
	for i, err := range e.errs {
		texts[i] = err.Error()
	}
	return strings.Join(texts, "; ")
}

func (e *fetchError) Unwrap() []error { return e.errs }

// openPatience bounds how long a delivery waits for a body that this node has
// to fetch first. It is short beside a lease.
const openPatience = 10 * time.Second

// open returns the body for reading, fetching it first where it is missing.
func (b *bodies) open(ctx context.Context, ref mail.BodyRef) (io.ReadSeekCloser, error) {
	r, err := b.Open(ref)
	if !errors.Is(err, spool.ErrNotHeld) {
		return r, err
	}
	arrived := b.Arrived(ref)
	ended := b.want(ref, "", 0)
	ctx, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	select {
	case <-arrived:
	case <-ended:
	case <-ctx.Done():
		return nil, fmt.Errorf("body %s is not held here and did not arrive: %w", ref.ID, ctx.Err())
	}
	_ = b.Await(ref) // Open says what came of it.
	return b.Open(ref)
}

// wait returns when the fetches have ended. ctx must have ended before.
func (b *bodies) wait() { b.running.Wait() }
