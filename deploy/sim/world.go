package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/raftlog"
	"github.com/holdfast-mx/holdfast/cluster/transport"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	smtpPort    = "25"
	clusterPort = "7420"
	primaryName = "primary"
	senderName  = "sender"
)

var (
	// nodeNames are those of a cluster of three, fiveNames of one of five.
	nodeNames    = []string{"n1", "n2", "n3"}
	fiveNames    = []string{"n1", "n2", "n3", "n4", "n5"}
	relayDomains = []mail.Domain{"example.org", "example.test"}
)

// A World is one simulated cluster with what surrounds it. All of it lives in
// one synctest bubble.
type World struct {
	seed     uint64
	names    []string // of all nodes, whether they run or not
	random   *rand.Rand
	log      *slog.Logger
	network  *clustertest.Network
	registry *registry
	certs    string // directory of the CA and the nodes' certificates
	wipes    int
	disks    map[string]*disks
	// inFiles names the node that keeps all that it keeps in real files, as the
	// daemon does. It ends by Stop only.
	inFiles string
	// host: all nodes keep all that they keep in real files.
	host bool
	// measured: the free space of a node is that of the file system which its data
	// directory lies on, not what the story says.
	measured bool
	// segments: Raft's log lies in segment files on the disk that bodies lie on,
	// and both are in short files, many of which come and go. Otherwise the log is
	// a map, which stories look into and hold up.
	segments bool
	ledger   *ledger.Ledger
	faults   *sink.Faults
	zone     zone
	// rhythm is that of the nodes that are started.
	rhythm node.Pace
	// adjust, if not nil, changes the configuration of nodes that are started.
	adjust func(*config.Config)
	// clocks are those of the nodes that have one of their own.
	clocks map[string]clock
	// record, if not nil, takes the place of the ledger for what Send records.
	record sender.Recorder
	// waiting, if not nil, is told of each reply that a sender waited for.
	waiting func(ledger.Wait)
	// arriving, if not nil, is told of each message that the primary takes,
	// before the primary says so.
	arriving func(ledger.Arrival)
	// controls are the switches of nodes that are started.
	controls controls.Set
	// failpoint, if not nil, is told of the moments that nodes come to, see
	// failpoints.go. The files of worlds that have one are short.
	failpoint func(node, moment string)

	// nodes are those that run. Written by the goroutine that owns the world,
	// read by any through node.
	nodesLock sync.Mutex
	nodes     map[string]*process

	primaryLock sync.Mutex
	primary     *sink.Server // nil while it is down
	primaryDone chan struct{}
	pace        time.Duration // before the primary's reply to a dot
	// home is the senders' host, nil where they are told nothing.
	home *home
	// usual is how the primary is where no fault makes it otherwise.
	usual struct {
		pace   time.Duration
		faults []sink.Fault
	}

	// silences are when the senders could not talk to nodes, by their names.
	silencesLock sync.Mutex
	silences     map[string][]ledger.Span

	// fell lists the nodes that failed by themselves, with the reason, but for those
	// in ailing, whose disk was broken on purpose.
	fellLock sync.Mutex
	fell     []string
	ailing   map[string]bool
}

// disks outlive the processes that use them.
type disks struct {
	spool *clustertest.Disk // and Raft's log, where it lies in segments
	raft  *clustertest.RaftDisk
	free  atomic.Int64 // per cent
}

// A process is one life of one node.
type process struct {
	name  string
	node  *node.Node
	raft  *clustertest.RaftStore // nil where it is in files
	dead  atomic.Bool
	ended chan struct{} // closed when nothing of it runs any more
}

// NewWorld prepares a world of nodes of these names. dir takes the certificates, as
// real files.
func NewWorld(seed uint64, names []string, dir string, log *slog.Logger) (*World, error) {
	network := clustertest.NewNetwork(seed, time.Millisecond, 20*time.Millisecond)
	w := &World{
		seed: seed, names: names, random: rand.New(rand.NewPCG(seed, 0x73696d)), log: log,
		network: network, registry: newRegistry(network.Reachable), certs: dir,
		disks: map[string]*disks{}, nodes: map[string]*process{}, ailing: map[string]bool{}, silences: map[string][]ledger.Span{},
		ledger: ledger.New(), faults: sink.NewFaults(seed),
	}
	ca, err := transport.CreateCA("sim", time.Now())
	if err != nil {
		return nil, err
	}
	if _, _, err := ca.WriteFiles(dir, "ca"); err != nil {
		return nil, err
	}
	for i, name := range names {
		pair, err := transport.IssueNode(ca, name, nil, time.Now())
		if err != nil {
			return nil, err
		}
		if _, _, err := pair.WriteFiles(dir, name); err != nil {
			return nil, err
		}
		w.disks[name] = newDisks(seed + uint64(i))
	}
	return w, nil
}

// Start brings a node up on its disks.
func (w *World) Start(ctx context.Context, name string) error {
	d := w.disks[name]
	host := w.network.Host(name)
	p := &process{name: name, ended: make(chan struct{})}
	var fs vfs.FS
	var spoolSegment mail.ByteSize
	var spoolPool int
	switch {
	case name == w.inFiles:
		fs, spoolPool = vfs.OS(), 1
	case w.measured:
		fs, spoolSegment, spoolPool = vfs.OS(), 4*mail.MiB, poolFiles
	case w.host:
		fs, spoolSegment = vfs.OS(), 16*mail.KiB
	case w.segments:
		spoolSegment, spoolPool = spoolSegmentBytes, poolFiles
		d.spool.SetLatency(w.latency())
		fs = d.spool.Mount()
		if w.failpoint != nil {
			spoolSegment = shortSegmentBytes
			fs = observedFS{fs, w.failpointOf(p)}
		}
	default:
		fs = d.spool.Mount()
	}
	if name != w.inFiles {
		p.raft = d.raft.Open()
	}
	listen := func(address string) (net.Listener, error) {
		if p.dead.Load() {
			return nil, net.ErrClosed
		}
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		number, err := strconv.Atoi(port)
		if err != nil {
			return nil, err
		}
		return host.Listen(number)
	}
	dial := func(ctx context.Context, address string) (net.Conn, error) {
		if p.dead.Load() {
			return nil, net.ErrClosed
		}
		c, err := host.Dial(ctx, address)
		if err == nil && p.dead.Load() { // killed while it dialled
			return nil, errors.Join(net.ErrClosed, c.Close())
		}
		return c, err
	}
	freeSpace := func(string) (int, error) { return int(d.free.Load()), nil }
	if w.measured {
		freeSpace = node.System(w.log).FreeSpace
	}
	n, err := node.Start(ctx, w.config(name), node.Seams{
		Log:    w.log.With("node", name),
		Listen: listen, Dial: dial, DialSMTP: dial, Resolver: w.zone,
		Spool: fs, SpoolSegment: spoolSegment, SpoolPool: spoolPool,
		Stores: func(dir string) (consensus.Stores, error) {
			if w.host || name == w.inFiles {
				return consensus.OpenStores(dir)
			}
			stores := consensus.Stores{Log: p.raft, Stable: p.raft, Snapshots: p.raft}
			if !w.segments {
				return stores, nil
			}
			options := raftlog.Options{SegmentBytes: logSegmentBytes, PoolFiles: poolFiles}
			if w.failpoint != nil {
				options.SegmentBytes = shortSegmentBytes
				stores = observedStores(stores, w.failpointOf(p))
			}
			var err error
			stores.Log, stores.Close, err = consensus.OpenLog(fs, filepath.Join(dir, "log"), p.raft, options)
			return stores, err
		},
		Directory: func(c node.DirectoryConfig) (node.Directory, error) {
			return &directory{registry: w.registry, names: w.names, self: cluster.Sighting{
				Name: name, Incarnation: c.ServerID.Incarnation(), Address: net.JoinHostPort(name, clusterPort), Alive: true,
			}}, nil
		},
		FreeSpace:   freeSpace,
		Pace:        w.rhythm,
		Descriptors: func() (uint64, error) { return 1 << 16, nil },
		Now:         w.clocks[name].now,
		Boot:        w.clocks[name].boot,
		Entropy:     &randomReader{random: rand.New(rand.NewPCG(w.random.Uint64(), w.random.Uint64()))},
		Controls:    w.controls,
		Failpoint:   w.failpointOf(p),
	})
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	p.node = n
	w.setNode(name, p)
	go w.watch(p)
	return nil
}

// slowRhythm is for worlds where for most of the time nothing happens, farApart their
// configuration.
var slowRhythm = node.Pace{Commit: 4 * time.Second, Tick: 30 * time.Second, Roll: 8 * time.Second, Reconnect: 20 * time.Second}

func farApart(c *config.Config) { c.Latency = config.WAN }

// A clock is a host's: its wall clock is wrong, and its oscillator too fast or too
// slow by so many in a thousand. Go's monotonic clock, by which a leader waits, is
// that of the bubble for all nodes: the difference is in what a holder counts by.
type clock struct {
	wrong time.Duration
	drift int
}

func (c clock) now() time.Time { return time.Now().Add(c.wrong) }

func (c clock) boot() time.Duration {
	up := time.Since(time.Time{}.AddDate(1990, 0, 0))
	return up + up/1000*time.Duration(c.drift)
}

// In worlds with segments they are so short that a seed fills many.
const (
	logSegmentBytes   = 256 << 10
	spoolSegmentBytes = 1 * mail.MiB
	poolFiles         = 1
	// syncMax is how long a sync takes at most.
	syncMax = 4 * time.Millisecond
)

// watch notes when a node fails that nobody killed.
func (w *World) watch(p *process) {
	select {
	case <-p.node.Failed():
		w.fellLock.Lock()
		if !p.dead.Load() && !w.ailing[p.name] {
			w.fell = append(w.fell, fmt.Sprintf("%s: %v", p.name, p.node.Err()))
		}
		w.fellLock.Unlock()
	case <-p.ended:
	}
}

// latency returns how long the operations of a disk take.
func (w *World) latency() func(clustertest.Op) time.Duration {
	random := rand.New(rand.NewPCG(w.random.Uint64(), 0x73796e63)) // the disk asks for one at a time
	return func(op clustertest.Op) time.Duration {
		if op != clustertest.OpSync {
			return 0
		}
		return time.Duration(random.Int64N(int64(syncMax)))
	}
}

// config is a node's configuration, as its file would give it.
func (w *World) config(name string) *config.Config {
	c := config.Default()
	c.Cluster, c.Node, c.Hostname = "sim", fsm.NodeName(name), mail.Domain(name+".backup.test")
	c.DataDir = filepath.Join(w.certs, "data-"+name)
	c.SMTPListen = []string{name + ":" + smtpPort}
	c.ClusterListen = name + ":" + clusterPort
	c.ClusterAdvertise = c.ClusterListen
	c.CA = filepath.Join(w.certs, "ca.crt")
	c.Cert = filepath.Join(w.certs, name+".crt")
	c.Key = filepath.Join(w.certs, name+".key")
	c.BootstrapExpect = len(w.names)
	c.Latency = config.LAN
	c.AdminSocket = ""
	if w.adjust != nil {
		w.adjust(c)
	}
	return c
}

// setNode enters a process that runs, or takes one out.
func (w *World) setNode(name string, p *process) {
	w.nodesLock.Lock()
	defer w.nodesLock.Unlock()
	if p == nil {
		delete(w.nodes, name)
	} else {
		w.nodes[name] = p
	}
}

// node returns the process that runs under a name, nil if none does. Any
// goroutine may call it.
func (w *World) node(name string) *process {
	w.nodesLock.Lock()
	defer w.nodesLock.Unlock()
	return w.nodes[name]
}

// setAiling says whether a node's disk is broken on purpose.
func (w *World) setAiling(name string, ailing bool) {
	w.fellLock.Lock()
	defer w.fellLock.Unlock()
	w.ailing[name] = ailing
}

// without returns all names but one, in order.
func without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(other string) bool { return other == name })
}

// Kill ends a node as SIGKILL does: its links break, it writes nothing more,
// and nobody waits for it. What it wrote, synced or not, is there for the next.
func (w *World) Kill(name string) { w.end(name, (*clustertest.Disk).Kill) }

// PowerCut ends a node with its host: what no sync covered is lost, kept or
// torn.
func (w *World) PowerCut(name string) { w.end(name, (*clustertest.Disk).Crash) }

// Wipe gives a node that does not run empty disks, as a host has that was
// installed anew.
func (w *World) Wipe(name string) {
	w.wipes++
	w.disks[name] = newDisks(w.seed + 1000*uint64(w.wipes))
}

func newDisks(seed uint64) *disks {
	d := &disks{
		spool: clustertest.NewDisk(seed),
		raft:  clustertest.NewRaftDisk(seed, 4*time.Millisecond),
	}
	d.free.Store(50)
	return d
}

func (w *World) end(name string, disk func(*clustertest.Disk)) {
	p := w.nodes[name]
	if p == nil {
		return
	}
	w.setNode(name, nil)
	p.dead.Store(true)
	w.network.Kill(name)
	p.raft.Crash()
	disk(w.disks[name].spool)
	go func() {
		// What is left of the process touches neither network nor disk any more;
		// its goroutines have to end all the same, since the bubble waits for them.
		over, cancel := context.WithCancel(context.Background())
		cancel()
		_ = p.node.Close(over)
		close(p.ended)
	}()
}

// Stop ends a node cleanly.
func (w *World) Stop(name string) error {
	p := w.nodes[name]
	if p == nil {
		return nil
	}
	w.setNode(name, nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err := p.node.Close(ctx)
	p.dead.Store(true)
	close(p.ended)
	return err
}

// Leader returns the name of the node that leads by its own account, "" where
// none does.
func (w *World) Leader() string {
	for _, name := range w.names {
		if p := w.nodes[name]; p != nil && p.node.Member().Node().IsLeader() {
			return name
		}
	}
	return ""
}

// Do has an action committed by any node that can.
func (w *World) Do(ctx context.Context, action fsm.Action) error {
	for {
		for _, name := range w.names {
			p := w.nodes[name]
			if p == nil || p.node.Member().Ready() != nil {
				continue
			}
			attempt, cancel := context.WithTimeout(ctx, 10*time.Second)
			result, err := p.node.Member().Do(attempt, action)
			cancel()
			if err == nil && result.Verdict == fsm.Done {
				return nil
			}
			if err == nil {
				return fmt.Errorf("%T: %s", action, result.Text)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%T: no node commits: %w", action, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// PutDomains registers the relay domains with the primary.
func (w *World) PutDomains(ctx context.Context) error {
	for _, d := range relayDomains {
		if err := w.Do(ctx, fsm.PutDomain{Domain: w.relayDomain(d)}); err != nil {
			return err
		}
	}
	for _, name := range w.names {
		for !w.knows(name) {
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s does not learn of the relay domains: %w", name, ctx.Err())
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// knows reports whether a node has heard of all relay domains. Before that it
// refuses mail for them, as it should.
func (w *World) knows(name string) bool {
	p := w.nodes[name]
	return p != nil && len(p.node.Member().View().Domains()) == len(relayDomains)
}

// PrimaryUp starts the primary.
func (w *World) PrimaryUp() error {
	w.primaryLock.Lock()
	defer w.primaryLock.Unlock()
	if w.primary != nil {
		return nil
	}
	l, err := w.network.Host(primaryName).Listen(25)
	if err != nil {
		return err
	}
	o := sink.Options{
		Hostname: "mail.example.org", Faults: w.faults, Pace: w.pace,
		Arrival: func(a ledger.Arrival) error {
			if w.arriving != nil {
				w.arriving(a)
			}
			return w.ledger.Arrival(a)
		},
	}
	if w.home != nil {
		o.Refuse, o.Refused = letter.IsRefusedAt, w.ledger.Refusal
	}
	w.primary = sink.New(o)
	w.primaryDone = make(chan struct{})
	go func(s *sink.Server, done chan struct{}) {
		defer close(done)
		_ = s.Serve(l)
	}(w.primary, w.primaryDone)
	return nil
}

// SetPace sets how long the primary thinks about each final dot.
func (w *World) SetPace(d time.Duration) {
	w.primaryLock.Lock()
	defer w.primaryLock.Unlock()
	w.pace = d
	if w.primary != nil {
		w.primary.SetPace(d)
	}
}

// PrimaryDown ends it.
func (w *World) PrimaryDown() {
	w.primaryLock.Lock()
	defer w.primaryLock.Unlock()
	if w.primary == nil {
		return
	}
	w.primary.Close()
	<-w.primaryDone
	w.primary = nil
}

// Send sends letters to all nodes in turn, as a real sender does, until all
// have a 250 or ctx ends.
func (w *World) Send(ctx context.Context, count, sessions int, pause time.Duration) (sender.Stats, error) {
	return w.sendWith(ctx, sender.Options{Count: count, Sessions: sessions, Pause: pause})
}

// sendWith is Send with other options. Those that are the same in every world it
// sets itself.
func (w *World) sendWith(ctx context.Context, o sender.Options) (sender.Stats, error) {
	o.Targets = nil
	for _, name := range w.names {
		o.Targets = append(o.Targets, name+":"+smtpPort)
	}
	var domains []string
	for _, d := range relayDomains {
		domains = append(domains, string(d))
	}
	if o.Letter == nil {
		o.Letter = letter.New(letter.Options{Seed: w.seed, Domains: domains, Sizes: letter.ShapesOfMail, BigAt: -1, RefusedEvery: w.refusedEvery()}).Letter
	}
	o.Record = w.record
	if o.Record == nil {
		o.Record = w.ledger
	}
	o.PerConnection, o.GiveUp = cmp.Or(o.PerConnection, 2), cmp.Or(o.GiveUp, 24*time.Hour)
	o.Waited = w.waiting
	if o.Dial == nil {
		o.Dial = w.network.Host(senderName).Dial
	}
	o.Seed, o.Hello = w.seed, "sender.test"
	s, err := sender.New(o)
	if err != nil {
		return sender.Stats{}, err
	}
	err = s.Run(ctx)
	return s.Stats(), err
}

// Close ends everything that still runs.
func (w *World) Close() {
	for _, name := range w.names {
		_ = w.Stop(name)
	}
	w.PrimaryDown()
	if w.home != nil {
		w.home.down()
	}
}

// A zone is the DNS of a world: mail for a domain goes to the host of that name in it.
// A nil zone has nothing, since primaries are configured by address.
type zone map[string]netip.Addr

func (z zone) MX(_ context.Context, domain string) ([]route.MX, error) {
	if _, ok := z[domain]; !ok {
		return nil, os.ErrNotExist
	}
	return []route.MX{{Host: domain, Preference: 10}}, nil
}

func (z zone) Addresses(_ context.Context, host string) ([]netip.Addr, error) {
	if a, ok := z[host]; ok {
		return []netip.Addr{a}, nil
	}
	return nil, os.ErrNotExist
}

// A randomReader yields random bytes to all rooms of a node at once.
type randomReader struct {
	mu     sync.Mutex
	random *rand.Rand
}

func (r *randomReader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range p {
		p[i] = byte(r.random.Uint32())
	}
	return len(p), nil
}
