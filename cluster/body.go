package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// fetchTimeout bounds the fetch of one body from one peer.
const fetchTimeout = 60 * time.Second

// fetchesMax bounds the fetches under way at once.
const fetchesMax = 4

// pushPatience is how long a fetch waits for the push of the same body. It is
// short beside what the append rule's gate waits.
const pushPatience = 150 * time.Millisecond

// A fetcher gets a body from a named peer.
type fetcher interface {
	Fetch(ctx context.Context, from string, ref mail.BodyRef) (*mail.Body, error)
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

	mu       sync.Mutex
	fetching map[mail.BodyRef]bool
	running  sync.WaitGroup
}

func newBodies(ctx context.Context, s *spool.Spool, peers fetcher, self string, names func() []string, full func() bool, log *slog.Logger) *bodies {
	return &bodies{
		Spool: s, log: log, self: self, peers: peers, names: names, full: full, ctx: ctx,
		places:   make(chan struct{}, fetchesMax),
		fetching: map[mail.BodyRef]bool{},
	}
}

// Want starts a fetch of the body, the named server first, unless one is under
// way. The fetch goes on when whoever wanted it has given up: the entry will be
// sent again.
//
// A full disk gets none: its node then stays behind until others have committed
// what it cannot store.
func (b *bodies) Want(ref mail.BodyRef, from consensus.ServerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.fetching[ref] || b.ctx.Err() != nil || b.full() {
		return
	}
	b.fetching[ref] = true
	b.running.Add(1)
	go func() {
		defer b.running.Done()
		defer func() {
			b.mu.Lock()
			delete(b.fetching, ref)
			b.mu.Unlock()
		}()
		// Mostly the push is under way, and only a little behind the entry.
		pushed := time.NewTimer(pushPatience)
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
		if err := b.fetch(b.ctx, ref, from.Name()); err != nil {
			b.log.Info("body not fetched", "queue_id", ref.ID, "cause", err)
		}
	}()
}

// Repair gets the body from any peer, replacing a damaged copy. It is for the
// start-up check.
func (b *bodies) Repair(ctx context.Context, ref mail.BodyRef) error {
	return b.fetch(ctx, ref, "")
}

// fetch asks first, then every other server, until one has the body.
func (b *bodies) fetch(ctx context.Context, ref mail.BodyRef, first string) error {
	asked := map[string]bool{b.self: true, "": true}
	var failures []error
	for _, name := range append([]string{first}, b.names()...) {
		if asked[name] {
			continue
		}
		asked[name] = true
		if err := b.fetchFrom(ctx, ref, name); err != nil {
			failures = append(failures, err)
			continue
		}
		return nil
	}
	if len(failures) == 0 {
		return fmt.Errorf("body %s: no peer to ask", ref.ID)
	}
	return errors.Join(failures...)
}

func (b *bodies) fetchFrom(ctx context.Context, ref mail.BodyRef, name string) error {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	body, err := b.peers.Fetch(ctx, name, ref)
	if err != nil {
		return fmt.Errorf("fetch body %s from %s: %w", ref.ID, name, err)
	}
	if err := b.Put(ref, body); err != nil {
		return fmt.Errorf("store body %s: %w", ref.ID, err)
	}
	return nil
}

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
	b.Want(ref, "")
	ctx, cancel := context.WithTimeout(ctx, openPatience)
	defer cancel()
	select {
	case <-arrived:
		return b.Open(ref)
	case <-ctx.Done():
		return nil, fmt.Errorf("body %s is not held here and did not arrive: %w", ref.ID, ctx.Err())
	}
}

// wait returns when the fetches have ended. ctx must have ended before.
func (b *bodies) wait() { b.running.Wait() }
