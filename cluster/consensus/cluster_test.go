package consensus

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

var (
	raftLogs  = flag.Bool("raftlogs", false, "print what the members log")
	histories = flag.Int("histories", 6, "random histories of three nodes; a third as many of five")
	seedFlag  = flag.Uint64("seed", 1, "first seed of the random histories")
)

const (
	raftPort  = 7000
	orphanAge = 5 * time.Second
	patience  = 60 * time.Second // for what has to happen
)

// A testCluster is members in one bubble: consensus over the network and the
// disks of clustertest, with the smallest possible cluster room around it:
// push, reclaim, hydration.
type testCluster struct {
	t       *testing.T
	net     *clustertest.Network
	bodies  *clustertest.BodyNet
	oracle  *oracle
	members map[string]*testMember
	names   []string
	options clusterOptions

	mu     sync.Mutex
	minted uint64
	nodes  []*Node // all that ever ran, for the greatest commit index
}

type clusterOptions struct {
	seed         uint64
	controls     controls.Set
	trailing     uint64
	threshold    uint64
	interval     time.Duration
	stallMax     time.Duration
	diskTime     time.Duration
	housekeeping bool // reclaim and hydrate in the background
}

type testMember struct {
	c        *testCluster
	name     string
	disk     *clustertest.RaftDisk
	bodyDisk *clustertest.BodyDisk
	controls controls.Set
	// heartbeat is the member's HeartbeatTimeout, the default where it is zero.
	heartbeat time.Duration
	// logger is where it logs to; nil is testLogger.
	logger *slog.Logger
	// stalled is the member's DiskStalled.
	stalled func(time.Duration) bool
	// open opens other stores than the disk's.
	open func() (Stores, error)
	// snapshots comes between Raft and the store of snapshots.
	snapshots func(raft.SnapshotStore) raft.SnapshotStore

	mu     sync.Mutex // guards what a process is made of
	proc   *process
	starts int
}

// A process is one life of a member.
type process struct {
	member *testMember
	node   *Node
	store  *clustertest.RaftStore
	bodies *clustertest.Bodies
	fsm    *testFSM
	stop   context.CancelFunc
	tasks  sync.WaitGroup
	// restored is how many snapshots were restored by the start itself.
	restored int
}

type testBodies struct{ *clustertest.Bodies }

func (b testBodies) Want(ref mail.BodyRef, from ServerID) { b.WantFrom(ref, from.Name()) }

type testStream struct {
	net.Listener
	host *clustertest.Host
}

func (s testStream) Dial(ctx context.Context, _ ServerID, addr string) (net.Conn, error) {
	return s.host.Dial(ctx, addr)
}

func testLogger(name string) *slog.Logger {
	if *raftLogs {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && a.Value.Kind() == slog.KindTime {
				return slog.String("t", a.Value.Time().Format("05.000"))
			}
			return a
		}})).With("node", name)
	}
	return slog.New(slog.DiscardHandler)
}

// inCluster runs a test in a bubble with members a, b, c... that are not
// started yet.
func inCluster(t *testing.T, size int, o clusterOptions, test func(t *testing.T, c *testCluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		if o.diskTime == 0 {
			o.diskTime = 4 * time.Millisecond
		}
		c := &testCluster{
			t:       t,
			net:     clustertest.NewNetwork(o.seed, time.Millisecond, 5*time.Millisecond),
			bodies:  clustertest.NewBodyNet(clustertest.NewNetwork(o.seed+1, time.Millisecond, 5*time.Millisecond)),
			members: make(map[string]*testMember),
			options: o,
		}
		c.oracle = newOracle(c)
		for i := range size {
			c.add(string(rune('a' + i)))
		}
		defer func() {
			for _, m := range c.members {
				m.kill()
			}
		}()
		test(t, c)
	})
}

func (c *testCluster) add(name string) *testMember {
	seed := c.options.seed + uint64(len(c.names))*17
	m := &testMember{
		c: c, name: name, controls: c.options.controls,
		disk:     clustertest.NewRaftDisk(seed, c.options.diskTime),
		bodyDisk: clustertest.NewBodyDisk(seed, c.options.diskTime),
	}
	m.disk.OnNumber(func(key string, value uint64) {
		if key == string(floorKey) {
			c.oracle.floorRaised(m, value)
		}
	})
	c.members[name] = m
	c.names = append(c.names, name)
	return m
}

func (m *testMember) String() string  { return m.name }
func (m *testMember) id() ServerID    { return ServerID(m.name + "/1") }
func (m *testMember) address() string { return fmt.Sprintf("%s:%d", m.name, raftPort) }

// floor returns the durable floor.
func (m *testMember) floor() uint64 {
	if m.open == nil {
		return m.disk.Number(string(floorKey))
	}
	if n := m.node(); n != nil {
		return n.Floor()
	}
	return 0
}

// start begins a process.
func (m *testMember) start() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return m.startWithin(ctx)
}

func (m *testMember) startWithin(ctx context.Context) error {
	c := m.c
	listener, err := c.net.Host(m.name).Listen(raftPort)
	if err != nil {
		return err
	}
	p := &process{member: m, store: m.disk.Open(), bodies: m.bodyDisk.Open(m.name, c.bodies)}
	p.fsm = newTestFSM(p)
	stores := Stores{Log: p.store, Stable: p.store, Snapshots: p.store}
	if m.open != nil {
		if stores, err = m.open(); err != nil {
			return err
		}
	}
	if m.snapshots != nil {
		stores.Snapshots = m.snapshots(stores.Snapshots)
	}
	logger := m.logger
	if logger == nil {
		logger = testLogger(m.name)
	}
	p.node, err = Start(ctx, Config{
		ID: m.id(), FSM: p.fsm, Bodies: testBodies{p.bodies},
		Stream:            testStream{listener, c.net.Host(m.name)},
		Stores:            stores,
		Logger:            logger,
		HeartbeatTimeout:  m.heartbeat,
		TrailingLogs:      c.options.trailing,
		SnapshotThreshold: c.options.threshold,
		SnapshotInterval:  c.options.interval,
		StoreStallMax:     c.options.stallMax,
		DiskStalled:       m.stalled,
		Controls:          m.controls,
		stored:            func(logs []*raft.Log) { c.oracle.storing(m, p.bodies, logs) },
	})
	if err != nil {
		p.bodies.Crash()
		return err
	}
	p.restored = p.fsm.restores()
	var tasks context.Context
	tasks, p.stop = context.WithCancel(context.Background())
	if c.options.housekeeping {
		p.tasks.Go(func() { p.housekeep(tasks) })
	}
	c.mu.Lock()
	c.nodes = append(c.nodes, p.node)
	c.mu.Unlock()
	m.mu.Lock()
	m.proc = p
	m.starts++
	m.mu.Unlock()
	return nil
}

// kill ends the process as SIGKILL does: its links first, then its disk.
func (m *testMember) kill() {
	m.mu.Lock()
	p := m.proc
	m.proc = nil
	m.mu.Unlock()
	if p == nil {
		return
	}
	p.fsm.die()
	m.c.net.Kill(m.name)
	p.store.Crash()
	p.bodies.Crash()
	p.stop()
	p.tasks.Wait()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := p.node.Shutdown(ctx); err != nil {
		m.c.t.Errorf("shut down %s: %v", m.name, err)
	}
}

// running returns the process, nil when there is none.
func (m *testMember) running() *process {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proc
}

func (m *testMember) node() *Node {
	if p := m.running(); p != nil {
		return p.node
	}
	return nil
}

// up starts members, all where none is named.
func (c *testCluster) up(names ...string) {
	c.t.Helper()
	if len(names) == 0 {
		names = c.names
	}
	for _, name := range names {
		if err := c.members[name].start(); err != nil {
			c.t.Fatalf("start %s: %v", name, err)
		}
	}
}

// down kills members, all where none is named.
func (c *testCluster) down(names ...string) {
	if len(names) == 0 {
		names = c.names
	}
	for _, name := range names {
		c.members[name].kill()
	}
}

// bootstrap makes all members voters.
func (c *testCluster) bootstrap() {
	c.t.Helper()
	c.bootstrapWith(c.names...)
}

func (c *testCluster) bootstrapWith(names ...string) {
	c.t.Helper()
	var servers []Server
	for _, name := range names {
		m := c.members[name]
		servers = append(servers, Server{ID: m.id(), Address: m.address(), Voter: true})
	}
	c.oracle.setVoters(names...)
	if err := c.members[names[0]].node().Bootstrap(servers); err != nil {
		c.t.Fatal(err)
	}
}

// leader waits for one leader that a majority follows.
func (c *testCluster) leader() *testMember {
	c.t.Helper()
	var leader *testMember
	if !c.eventually(patience, func() bool {
		leader = c.currentLeader()
		return leader != nil
	}) {
		c.t.Fatal("no leader")
	}
	return leader
}

// currentLeader returns the leader of the greatest term, nil for none.
func (c *testCluster) currentLeader() *testMember {
	var leader *testMember
	var term uint64
	for _, name := range c.names {
		if n := c.members[name].node(); n != nil && n.IsLeader() && n.Term() > term {
			leader, term = c.members[name], n.Term()
		}
	}
	return leader
}

// elect brings a member into leadership by holding the others off.
func (c *testCluster) elect(name string) *testMember {
	c.t.Helper()
	for range 20 {
		leader := c.leader()
		if leader.name == name {
			c.commit(leader)
			return leader
		}
		// A leader that the others do not hear falls, and they choose anew.
		for _, other := range c.names {
			if other != leader.name {
				c.net.Cut(leader.name, other)
			}
		}
		c.eventually(patience, func() bool {
			now := c.currentLeader()
			return now != nil && now != leader
		})
		c.net.HealAll()
		time.Sleep(5 * time.Second)
	}
	c.t.Fatalf("%s was not elected", name)
	return nil
}

// eventually waits for a condition.
func (c *testCluster) eventually(limit time.Duration, condition func() bool) bool {
	for deadline := time.Now().Add(limit); ; {
		if condition() {
			return true
		}
		if !time.Now().Before(deadline) {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (c *testCluster) must(what string, condition func() bool) {
	c.t.Helper()
	if !c.eventually(patience, condition) {
		c.t.Fatalf("not within %v: %s", patience, what)
	}
}

// mint names a new body.
func (c *testCluster) mint() mail.BodyRef {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.minted++
	id := mail.MintQueueID(c.minted, [10]byte{byte(c.options.seed)})
	return mail.NewBody(fmt.Appendf(nil, "body %d", c.minted)).Ref(id)
}

// put stores a body at members.
func (c *testCluster) put(ref mail.BodyRef, names ...string) {
	c.t.Helper()
	for _, name := range names {
		if err := c.members[name].running().bodies.Put(ref); err != nil {
			c.t.Fatalf("put at %s: %v", name, err)
		}
	}
}

// propose proposes at a member for at most a time.
func (m *testMember) propose(limit time.Duration, data []byte, body *mail.BodyRef) error {
	p := m.running()
	if p == nil {
		return notAppended(errors.New("not running"))
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_, err := p.node.Propose(ctx, data, body)
	if err == nil {
		m.c.oracle.acknowledged(data)
	}
	return err
}

// accept proposes a message.
func (m *testMember) accept(limit time.Duration, ref mail.BodyRef) error {
	return m.propose(limit, acceptCommand(ref), &ref)
}

// commit commits an entry without a body.
func (c *testCluster) commit(m *testMember) {
	c.t.Helper()
	if err := m.propose(patience, []byte{commandNothing}, nil); err != nil {
		c.t.Fatalf("commit at %s: %v", m.name, err)
	}
}

// deliver accepts and finishes n messages whose bodies all running members
// hold, and waits until all have applied that.
func (c *testCluster) deliver(leader *testMember, n int) []mail.BodyRef {
	c.t.Helper()
	var refs []mail.BodyRef
	for range n {
		ref := c.mint()
		refs = append(refs, ref)
		for _, name := range c.names {
			if c.members[name].running() != nil {
				c.put(ref, name)
			}
		}
		if err := leader.accept(patience, ref); err != nil {
			c.t.Fatalf("accept: %v", err)
		}
		if err := leader.propose(patience, finishCommand(ref), nil); err != nil {
			c.t.Fatalf("finish: %v", err)
		}
	}
	return refs
}

// level waits until all running members have applied the same.
func (c *testCluster) level() bool {
	return c.eventually(patience, func() bool {
		leader := c.currentLeader()
		if leader == nil {
			return false
		}
		led := leader.running()
		if led == nil {
			return false
		}
		last := led.node.CommitIndex()
		for _, name := range c.names {
			p := c.members[name].running()
			if p == nil {
				continue
			}
			if n := p.node; n.LastIndex() != last || n.CommitIndex() != last || n.Term() != led.node.Term() {
				return false
			}
			if p.fsm.count() != led.fsm.count() {
				return false
			}
		}
		return true
	})
}

// greatestCommit returns the greatest index that any member ever knew to be
// committed.
func (c *testCluster) greatestCommit() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	var greatest uint64
	for _, n := range c.nodes {
		greatest = max(greatest, n.CommitIndex())
	}
	return greatest
}

func (c *testCluster) others(name string) []string {
	return slices.DeleteFunc(slices.Clone(c.names), func(n string) bool { return n == name })
}
