package cluster

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/dispatch"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Directory is who is there, as gossip reports it. It decides nothing.
type Directory interface {
	// Sightings lists every member this node has heard of, itself included.
	Sightings() []Sighting
	// Announce tells the others whether this node has state, and whom it sees.
	Announce(hasState bool, sees string)
	// Changed returns a channel that ends or carries a value once Sightings may
	// differ from what was last returned.
	Changed() <-chan struct{}
}

// Config sets a Member up. All fields are required unless they say otherwise.
type Config struct {
	ID        consensus.ServerID
	Log       *slog.Logger
	Spool     *spool.Spool
	Peers     *peer.Peers
	Directory Directory
	// Starts is what the port asks; Start is how often this node has started, as
	// its stores count it.
	Starts *Starts
	Start  uint64
	Space  Space
	// Stores and Stream belong to the member from the call of Start on, and are
	// closed by it.
	Stores consensus.Stores
	Stream consensus.StreamLayer
	// HeartbeatTimeout, CommitInterval, SnapshotThreshold and TrailingLogs are as in
	// consensus.Config.
	HeartbeatTimeout  time.Duration
	CommitInterval    time.Duration
	SnapshotThreshold uint64
	TrailingLogs      uint64
	// RollEvery is how often the other servers are asked how they are, less than
	// rollLife; 0 is defaultRollEvery.
	RollEvery time.Duration
	// DiskStalled is as in consensus.Config; it may be nil.
	DiskStalled func(limit time.Duration) bool
	// Founding are the settings of a cluster that this node founds.
	Founding fsm.Settings
	// BootstrapExpect is how many empty nodes found a cluster together.
	BootstrapExpect int
	LeaseDuration   time.Duration
	LeaseBatchMax   int
	TickEvery       time.Duration
	// OrphanAge is how old a body must be that no entry names before it is
	// freed. It must exceed the time that any proposal can stay undecided.
	OrphanAge time.Duration
	// HydrationRate and ScrubRate are how many octets of bodies a second may be
	// fetched and read in the background.
	HydrationRate mail.ByteSize
	ScrubRate     mail.ByteSize
	Now           func() time.Time // wall clock, for queue ids, ages of orphans and the time of scrubs
	Entropy       io.Reader        // random bytes for queue ids
	// Controls breaks single rules, in builds with the tag controls alone.
	Controls controls.Set
	// Failpoint is called at named moments, for tests that end the node there.
	Failpoint controls.Failpoint
}

// A Member is one running member of the cluster. It is safe for concurrent use.
type Member struct {
	name            fsm.NodeName
	founding        fsm.Settings
	log             *slog.Logger
	spool           *spool.Spool
	node            *consensus.Node
	peers           *peer.Peers
	directory       Directory
	starts          *Starts
	space           Space
	roll            roll
	replica         *replica
	bodies          *bodies
	hydrator        *hydrator
	scrubber        *scrubber
	conditions      conditions
	dispatcher      *dispatch.Dispatcher
	settled         settledSet
	proposer        *proposer
	bootstrapExpect int
	orphanAge       time.Duration
	now             func() time.Time
	rollEvery       time.Duration

	entropyLock sync.Mutex
	entropy     io.Reader
	controls    controls.Set
	failpoint   controls.Failpoint

	leading  atomic.Bool // this node leads, and has applied what was committed before
	current  atomic.Bool // followLoop has caught up
	caughtUp flight
	changing sync.Mutex // held while the servers of the cluster are changed

	unwritten byteBudget    // of what was submitted here
	digesting chan struct{} // holds one value while the queue is encoded for its digest

	stopping chan struct{}
	life     context.Context // ends with Close
	stop     context.CancelFunc
	loops    sync.WaitGroup
	closing  sync.Once
	failed   chan struct{}
	failOnce sync.Once
	failure  error
}

// Start runs the start-up check of the append rule, starts Raft on what the
// stores hold, and returns the member. ctx bounds the start only. The caller
// serves the peers with Backend from before Start on, since the check may have
// to fetch bodies from nodes that are starting as well.
func Start(ctx context.Context, c Config) (*Member, error) {
	life, stop := context.WithCancel(context.Background())
	m := &Member{
		name: fsm.NodeName(c.ID.Name()), log: c.Log, founding: c.Founding,
		spool: c.Spool, peers: c.Peers, directory: c.Directory, starts: c.Starts, space: c.Space,
		replica:         newReplica(c.Log),
		bootstrapExpect: c.BootstrapExpect, orphanAge: c.OrphanAge, now: c.Now, entropy: c.Entropy, controls: c.Controls, failpoint: c.Failpoint,
		digesting: make(chan struct{}, 1),
		rollEvery: cmp.Or(c.RollEvery, defaultRollEvery),
		stopping:  make(chan struct{}), life: life, stop: stop, failed: make(chan struct{}),
	}
	m.settled.fresh = make(chan struct{}, 1)
	m.unwritten.max = unwrittenBytesMax
	m.bodies = newBodies(life, c.Spool, c.Peers, c.ID.Name(), m.othersFrom(c.Directory), c.Space.Full, c.Log)
	m.replica.failpoint, m.bodies.failpoint = c.Failpoint, c.Failpoint
	acknowledged, err := m.checkOutdated(ctx, c)
	if err != nil {
		stop()
		m.bodies.wait()
		return nil, errors.Join(err, c.Stream.Close(), c.Stores.Shut())
	}
	node, err := consensus.Start(ctx, consensus.Config{
		ID: c.ID, Stores: c.Stores, Stream: c.Stream, Observe: m.starts.observe,
		Bodies: m.bodies, FSM: m.replica, HeartbeatTimeout: c.HeartbeatTimeout, CommitInterval: c.CommitInterval, DiskStalled: c.DiskStalled, Logger: c.Log,
		SnapshotThreshold: c.SnapshotThreshold, TrailingLogs: c.TrailingLogs,
		Acknowledged: acknowledged, Controls: c.Controls, Failpoint: c.Failpoint,
	})
	if err != nil {
		stop()
		m.bodies.wait()
		return nil, fmt.Errorf("start consensus: %w", err)
	}
	m.node = node
	m.starts.complete(m.replica.start)
	m.proposer = &proposer{propose: m.proposeBatch}
	m.dispatcher = dispatch.New(dispatch.Config{
		Queue: leaderQueue{m}, Log: c.Log,
		LeaseDuration: c.LeaseDuration, LeaseMargin: leaseMargin, LeaseBatchMax: c.LeaseBatchMax, TickEvery: c.TickEvery,
		Controls: c.Controls, WallClock: c.Now,
	})
	m.hydrator = &hydrator{
		log: c.Log, bodies: m.bodies, replica: m.replica, ready: m.upToDate, signs: m.signs, full: c.Space.Full, servers: m.otherServers, hold: m.holdLost,
		now: c.Now, throttle: &throttle{rate: c.HydrationRate}, memory: &byteBudget{max: hydrateBytesMax},
	}
	m.scrubber = &scrubber{
		log: c.Log, bodies: m.bodies, replica: m.replica, rank: m.Rank, now: c.Now,
		throttle: &throttle{rate: c.ScrubRate}, wake: make(chan struct{}, 1),
	}
	node.WhileLeader(m.lead)
	m.loop(func() { m.settleIdle(life) })
	m.loop(func() { m.reclaimLoop(life) })
	m.loop(func() { m.bootstrapLoop(life) })
	m.loop(func() { m.followLoop(life) })
	m.loop(func() { m.callRoll(life) })
	m.loop(func() { m.makeWay(life) })
	m.loop(func() { m.recordStart(life, c.Start) })
	m.loop(func() { m.hydrator.run(life) })
	m.loop(func() { m.scrubber.run(life) })
	m.loop(func() { m.tendServers(life) })
	m.loop(func() { m.watch(life) })
	return m, nil
}

// checkOutdated asks the others, before Raft runs, whether they know more of
// this node than it does itself, and returns what they have seen it acknowledge.
func (m *Member) checkOutdated(ctx context.Context, c Config) (acknowledged uint64, _ error) {
	own, err := c.Stores.Promises()
	if err != nil {
		return 0, err
	}
	if own.Term == 0 {
		return 0, nil // it has never been a part of anything
	}
	servers, err := c.Stores.Servers()
	if err != nil {
		return 0, err
	}
	return m.askOthers(ctx, c.ID, own, servers)
}

// leaseMargin is what a leader waits beyond a lease's length.
const leaseMargin = time.Second

func (m *Member) loop(run func()) {
	m.loops.Add(1)
	go func() {
		defer m.loops.Done()
		run()
	}()
}

// lead is what this node does while it leads, until ctx ends.
func (m *Member) lead(ctx context.Context) {
	if term, leads := m.node.Reign(); leads { // it may be over already
		m.log.Info("leading", "term", term)
	}
	m.leading.Store(true)
	defer m.leading.Store(false)
	m.recordSettings(ctx)
	m.dispatcher.Lead(ctx)
	m.log.Info("leading no longer")
}

// recordSettings makes the settings say how many voters there are, since what
// makes a next hop down depends on it, and bounds the waits that one entry ends,
// once every server can apply that. The first leader of a new cluster, which is
// one whose log time has not begun, also records the founding settings.
func (m *Member) recordSettings(ctx context.Context) {
	voters := 0
	for _, s := range m.node.Servers() {
		if s.Voter {
			voters++
		}
	}
	view := m.View()
	before := view.Settings()
	settings := before
	if view.Now() == 0 {
		settings = m.founding.WithDefaults()
	}
	settings.Voters = voters
	bounded := settings
	bounded.WaitsPerEntry = fsm.WaitsPerEntry
	if m.Understood(fsm.PutSettings{Settings: bounded}) {
		settings = bounded
	}
	if voters == 0 || settings == before {
		return
	}
	if _, result, err := (leaderQueue{m}).Propose(ctx, fsm.PutSettings{Settings: settings}); err != nil || result.Verdict != fsm.Done {
		m.log.Warn("settings not recorded", "cause", errors.Join(err, errors.New(result.Text)))
	}
}

// watch ends the member when a part of it has failed for good.
func (m *Member) watch(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-m.spool.Failed():
		m.fail(fmt.Errorf("spool: %w", m.spool.Err()))
	case <-m.node.Failed():
		m.fail(fmt.Errorf("consensus: %w", m.node.Err()))
	case <-m.replica.halted:
		m.fail(m.replica.err())
	case <-m.starts.outdated:
		m.fail(m.starts.outdatedError())
	}
	// At once, before anything is wound down: a leader that can store nothing
	// must not go on leading while its sessions end.
	m.log.Error("leaving the cluster's log", "cause", m.failure)
	bounded, cancel := context.WithTimeout(ctx, failPatience)
	defer cancel()
	if err := m.node.Shutdown(bounded); err != nil {
		m.log.Warn("consensus not ended cleanly", "cause", err)
	}
}

// failPatience bounds how long a failed member waits for Raft to end.
const failPatience = 5 * time.Second

func (m *Member) fail(err error) {
	m.failOnce.Do(func() {
		m.failure = err
		close(m.failed)
	})
}

// Failed returns a channel that is closed when this node must not go on: its
// disk failed, or it met an entry that it does not understand. Err says which.
func (m *Member) Failed() <-chan struct{} { return m.failed }

// Err returns why the member failed, or nil.
func (m *Member) Err() error {
	select {
	case <-m.failed:
		return m.failure
	default:
		return nil
	}
}

// Ready returns nil when a message submitted now is likely to be committed.
func (m *Member) Ready() error {
	if err := m.Err(); err != nil {
		return err
	}
	if m.isStopping() {
		return ErrStopping
	}
	if m.node.Stalled() {
		return ErrDiskHangs
	}
	if _, ok := m.node.Leader(); !ok {
		return ErrNoLeader
	}
	if !m.current.Load() {
		return ErrCatchingUp
	}
	return nil
}

// View returns a snapshot of the queue as this node has applied it.
func (m *Member) View() *fsm.State { return m.replica.view() }

// Changed returns a channel that is closed when mail, a domain or a next hop
// changed: take it first, look second.
func (m *Member) Changed() <-chan struct{} { return m.replica.changed.wait() }

// OpenBody returns a body for reading, fetching it from a peer if need be.
func (m *Member) OpenBody(ctx context.Context, ref mail.BodyRef) (io.ReadSeekCloser, error) {
	return m.bodies.open(ctx, ref)
}

// Name returns this node's name.
func (m *Member) Name() fsm.NodeName { return m.name }

// Node returns the consensus node, for its status and membership.
func (m *Member) Node() *consensus.Node { return m.node }

// Rank returns this node's position among the voters by name, and how many
// there are. It orders turns; nothing depends on it for safety.
func (m *Member) Rank() (rank, voters int) {
	for _, s := range m.node.Servers() {
		if !s.Voter {
			continue
		}
		voters++
		if s.ID.Name() < string(m.name) {
			rank++
		}
	}
	return rank, voters
}

func (m *Member) isStopping() bool {
	select {
	case <-m.stopping:
		return true
	default:
		return false
	}
}

// mint draws a queue id.
func (m *Member) mint() (mail.QueueID, error) {
	var random [10]byte
	m.entropyLock.Lock()
	defer m.entropyLock.Unlock()
	if _, err := io.ReadFull(m.entropy, random[:]); err != nil {
		return mail.QueueID{}, err
	}
	return mail.MintQueueID(uint64(m.now().UnixMilli()), random), nil
}

// othersFrom returns whom to ask for a body: everybody else whom the directory
// sees alive, voter or not. Raft's configuration is not asked: bodies are needed
// before Raft runs as well, and who holds one may give it whatever its vote.
func (m *Member) othersFrom(d Directory) func() []string {
	return func() []string {
		var names []string
		for _, s := range d.Sightings() {
			if s.Alive && s.Name != string(m.name) {
				names = append(names, s.Name)
			}
		}
		return names
	}
}

// bootstrapLoop founds the cluster if that is this node's part, and goes on
// announcing whom it sees.
func (m *Member) bootstrapLoop(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	look := tick.C
	for {
		changed := m.directory.Changed()
		seen := m.directory.Sightings()
		hasState := m.node.HasState()
		m.directory.Announce(hasState, SightingsDigest(seen))
		if !hasState {
			if founders := DecideBootstrap(string(m.name), m.bootstrapExpect, seen); founders != nil {
				m.bootstrap(founders)
			}
		} else {
			look = nil // it keeps its state: only what is seen can change
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-look:
		}
	}
}

func (m *Member) bootstrap(founders []Sighting) {
	var servers []consensus.Server
	for _, f := range founders {
		servers = append(servers, consensus.Server{
			ID: consensus.ServerID(f.Name + "/" + f.Incarnation), Address: f.Address, Voter: true,
		})
	}
	if err := m.node.Bootstrap(servers); err != nil {
		m.log.Error("cluster not founded", "cause", err)
		return
	}
	m.log.Info("cluster founded", "servers", servers)
}

// Close stops the member: nothing more is proposed, and the loops, fetches and
// Raft end. Submits under way end with an unknown outcome, or a certain refusal
// where nothing was proposed yet. The spool, stores and peers are the caller's
// to close, after this.
func (m *Member) Close(ctx context.Context) error {
	var err error
	m.closing.Do(func() {
		close(m.stopping)
		m.stop()
		err = m.node.Shutdown(ctx)
		m.loops.Wait()
		m.bodies.wait()
	})
	return err
}
