package clustertest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

var (
	// ErrFull is what storing a body on a full disk answers.
	ErrFull = errors.New("no space left on device")
	// ErrRotten is what reading a rotten body answers.
	ErrRotten = errors.New("checksum does not match")
	// ErrNoBody is what reading a body that is not there answers.
	ErrNoBody = errors.New("body not held")
)

const (
	// fetchRetry is the pause between two rounds of a fetch.
	fetchRetry = 100 * time.Millisecond
	// fetchPatience is how long a fetch goes on.
	fetchPatience = 30 * time.Second
)

// A BodyNet is the channel that bodies travel on, apart from Raft's: who of
// the members runs, and a network whose cuts decide who reaches whom.
type BodyNet struct {
	Network *Network
	mu      sync.Mutex
	running map[string]*Bodies
}

// NewBodyNet returns a channel over its own network.
func NewBodyNet(n *Network) *BodyNet {
	return &BodyNet{Network: n, running: make(map[string]*Bodies)}
}

func (n *BodyNet) peer(name string) *Bodies {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.running[name]
}

func (n *BodyNet) peers() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	var names []string
	for name := range n.running {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// A BodyDisk is the bodies that one member has on stable storage. The octets
// themselves are not kept, only that they are there.
type BodyDisk struct {
	mu       sync.Mutex
	rand     *rand.Rand
	writeMax time.Duration
	bodies   map[mail.BodyRef]*storedBody
	full     bool
}

type storedBody struct {
	rotten bool
	since  time.Time
}

// NewBodyDisk returns an empty disk whose durable operations take up to
// writeMax.
func NewBodyDisk(seed uint64, writeMax time.Duration) *BodyDisk {
	return &BodyDisk{
		rand:     rand.New(rand.NewPCG(seed, 0x626f6479)),
		writeMax: writeMax,
		bodies:   make(map[mail.BodyRef]*storedBody),
	}
}

// SetFull makes the disk take no more bodies.
func (d *BodyDisk) SetFull(full bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.full = full
}

// Rot makes a stored body unreadable. The disk goes on saying that it has it.
func (d *BodyDisk) Rot(ref mail.BodyRef) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.bodies[ref]
	if b != nil {
		b.rotten = true
	}
	return b != nil
}

// Has reports whether the body is on the disk and whole.
func (d *BodyDisk) Has(ref mail.BodyRef) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	b := d.bodies[ref]
	return b != nil && !b.rotten
}

// Lose takes a body off the disk, behind the back of who runs on it.
func (d *BodyDisk) Lose(ref mail.BodyRef) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.bodies, ref)
}

// Open returns the disk as one process of a member sees it, and connects the
// member to the channel.
func (d *BodyDisk) Open(name string, net *BodyNet) *Bodies {
	ctx, cancel := context.WithCancelCause(context.Background())
	b := &Bodies{
		disk: d, net: net, name: name, ctx: ctx, cancel: cancel, opened: time.Now(),
		pins: make(map[mail.BodyRef]int), doomed: make(map[mail.BodyRef]bool),
		arrivals: make(map[mail.BodyRef]chan struct{}), wanted: make(map[mail.BodyRef]bool), coming: make(map[mail.BodyRef]*puts),
	}
	net.mu.Lock()
	net.running[name] = b
	net.mu.Unlock()
	return b
}

// Bodies is a member's bodies as one process sees them, until it crashes. It
// does what the spool and the fetching from peers do together.
type Bodies struct {
	disk   *BodyDisk
	net    *BodyNet
	name   string
	opened time.Time
	ctx    context.Context // ends with Crash
	cancel context.CancelCauseFunc

	mu       sync.Mutex
	pins     map[mail.BodyRef]int
	doomed   map[mail.BodyRef]bool
	arrivals map[mail.BodyRef]chan struct{} // not closed: not arrived
	wanted   map[mail.BodyRef]bool          // fetches that run
	coming   map[mail.BodyRef]*puts
}

// puts are the Puts of one body that are under way.
type puts struct {
	n     int
	ended chan struct{} // closed with the last one
}

// Crash ends the process and takes the member off the channel.
func (b *Bodies) Crash() {
	b.net.mu.Lock()
	if b.net.running[b.name] == b {
		delete(b.net.running, b.name)
	}
	b.net.mu.Unlock()
	b.cancel(ErrKilled)
}

func (b *Bodies) durable(change func() error) error {
	b.disk.mu.Lock()
	half := int64(b.disk.writeMax)/2 + 1
	before, after := time.Duration(b.disk.rand.Int64N(half)), time.Duration(b.disk.rand.Int64N(half))
	b.disk.mu.Unlock()
	if err := wait(b.ctx, before, nil); err != nil {
		return err
	}
	b.disk.mu.Lock()
	err := change()
	b.disk.mu.Unlock()
	if err != nil {
		return err
	}
	return wait(b.ctx, after, nil)
}

// Put stores a body. It is on the disk when it returns nil. It is here from the
// beginning on, unless the disk is full: only a crash keeps it from the disk.
func (b *Bodies) Put(ref mail.BodyRef) error {
	b.disk.mu.Lock()
	full := b.disk.full
	b.disk.mu.Unlock()
	if full && b.ctx.Err() == nil {
		return fmt.Errorf("store body %s: %w", ref, ErrFull)
	}
	b.begin(ref)
	defer b.end(ref)
	err := b.durable(func() error {
		b.disk.bodies[ref] = &storedBody{since: time.Now()}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store body %s: %w", ref, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.arrivals[ref]; c != nil {
		close(c)
		delete(b.arrivals, ref)
	}
	return nil
}

func (b *Bodies) begin(ref mail.BodyRef) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.coming[ref] == nil {
		b.coming[ref] = &puts{ended: make(chan struct{})}
	}
	b.coming[ref].n++
}

func (b *Bodies) end(ref mail.BodyRef) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.coming[ref]; c.n > 1 {
		c.n--
	} else {
		delete(b.coming, ref)
		close(c.ended)
	}
}

// Here reports whether the body is on the disk, or on its way.
func (b *Bodies) Here(ref mail.BodyRef) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.coming[ref] != nil || b.Held(ref)
}

// Hasten does nothing: here no body waits for others.
func (b *Bodies) Hasten() {}

// Await waits while a body is on its way to the disk.
func (b *Bodies) Await(ref mail.BodyRef) error {
	for {
		b.mu.Lock()
		c := b.coming[ref]
		b.mu.Unlock()
		switch {
		case b.ctx.Err() != nil:
			return context.Cause(b.ctx)
		case c == nil:
			return nil
		}
		<-c.ended
	}
}

// Push stores a body at another member, if that is reached.
func (b *Bodies) Push(ref mail.BodyRef, to string) error {
	peer := b.net.peer(to)
	if peer == nil || !b.net.Network.Reachable(b.name, to) {
		return errUnreach
	}
	if err := wait(b.ctx, b.net.Network.requestDelay(), nil); err != nil {
		return err
	}
	if err := peer.Put(ref); err != nil {
		return err
	}
	return wait(b.ctx, b.net.Network.requestDelay(), nil)
}

// Held reports whether the body is on the disk. It does not read it.
func (b *Bodies) Held(ref mail.BodyRef) bool {
	b.disk.mu.Lock()
	defer b.disk.mu.Unlock()
	return b.disk.bodies[ref] != nil
}

// Pin keeps a body from being deleted that is on the disk or on its way.
func (b *Bodies) Pin(ref mail.BodyRef) (release func(), here bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.doomed[ref] || b.coming[ref] == nil && !b.Held(ref) {
		return nil, false
	}
	b.pins[ref]++
	return sync.OnceFunc(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		if b.pins[ref]--; b.pins[ref] == 0 {
			delete(b.pins, ref)
		}
	}), true
}

// Arrived returns a channel that is closed when the body is held.
func (b *Bodies) Arrived(ref mail.BodyRef) <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.Held(ref) {
		return closedChannel()
	}
	c := b.arrivals[ref]
	if c == nil {
		c = make(chan struct{})
		b.arrivals[ref] = c
	}
	return c
}

// WantFrom starts or joins a fetch.
func (b *Bodies) WantFrom(ref mail.BodyRef, from string) {
	b.mu.Lock()
	running := b.wanted[ref] || b.ctx.Err() != nil
	b.wanted[ref] = true
	b.mu.Unlock()
	if running {
		return
	}
	go func() {
		defer func() {
			b.mu.Lock()
			delete(b.wanted, ref)
			b.mu.Unlock()
		}()
		ctx, cancel := context.WithTimeout(b.ctx, fetchPatience)
		defer cancel()
		for {
			if b.Held(ref) || b.fetch(ref, from) == nil || wait(ctx, fetchRetry, nil) != nil {
				return
			}
		}
	}()
}

// fetch tries each member once.
func (b *Bodies) fetch(ref mail.BodyRef, from string) error {
	for _, name := range append([]string{from}, b.net.peers()...) {
		peer := b.net.peer(name)
		if name == b.name || peer == nil || !b.net.Network.Reachable(b.name, name) {
			continue
		}
		if err := wait(b.ctx, b.net.Network.requestDelay()+b.net.Network.requestDelay(), nil); err != nil {
			return err
		}
		if peer.Verify(ref) != nil {
			continue
		}
		return b.Put(ref)
	}
	return ErrNoBody
}

// Verify reads a body.
func (b *Bodies) Verify(ref mail.BodyRef) error {
	b.disk.mu.Lock()
	defer b.disk.mu.Unlock()
	switch s := b.disk.bodies[ref]; {
	case s == nil:
		return ErrNoBody
	case s.rotten:
		return ErrRotten
	}
	return nil
}

// Repair fetches a body from any member, until ctx ends.
func (b *Bodies) Repair(ctx context.Context, ref mail.BodyRef) error {
	for {
		err := b.fetch(ref, "")
		if err == nil {
			return nil
		}
		if b.ctx.Err() != nil {
			return ErrKilled
		}
		if wait(ctx, fetchRetry, nil) != nil {
			return err
		}
	}
}

// A HeldBody is a body and since when this process or an earlier one has it;
// after a restart, since the restart.
type HeldBody struct {
	Ref   mail.BodyRef
	Since time.Time
}

// List returns what is held, in order of queue id.
func (b *Bodies) List() []HeldBody {
	b.disk.mu.Lock()
	defer b.disk.mu.Unlock()
	var held []HeldBody
	for ref, s := range b.disk.bodies {
		since := s.since
		if since.Before(b.opened) {
			since = b.opened
		}
		held = append(held, HeldBody{ref, since})
	}
	slices.SortFunc(held, func(x, y HeldBody) int { return x.Ref.ID.Compare(y.Ref.ID) })
	return held
}

// Doom marks those of the bodies that are not pinned, so that they cannot be
// pinned any more, and returns them.
func (b *Bodies) Doom(refs []mail.BodyRef) (doomed []mail.BodyRef) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ref := range refs {
		if b.pins[ref] == 0 {
			b.doomed[ref] = true
			doomed = append(doomed, ref)
		}
	}
	return doomed
}

// Spare takes the marks off.
func (b *Bodies) Spare(refs []mail.BodyRef) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, ref := range refs {
		delete(b.doomed, ref)
	}
}

// Delete deletes marked bodies.
func (b *Bodies) Delete(refs []mail.BodyRef) error {
	err := b.durable(func() error {
		for _, ref := range refs {
			delete(b.disk.bodies, ref)
		}
		return nil
	})
	b.Spare(refs)
	return err
}
