package sim

import (
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cluster/transport"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
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
//
// Each host has disks, which last, and a clock; on it runs one process after the other
// (process.go, disks.go, clock.go). Around the nodes are the senders (senders.go), the
// primary (primary.go), the host at which senders get reports (home.go), DNS (zone.go)
// and an administrator (administrator.go). What breaks is in schedule.go and
// failpoints.go; what judges a world is in the tests, beside the ledger.
type World struct {
	seed     uint64
	names    []string // of all nodes, whether they run or not
	random   *rand.Rand
	log      *slog.Logger
	network  *clustertest.Network
	registry *registry
	certs    string // directory of the CA and the nodes' certificates
	ledger   *ledger.Ledger
	zone     zone

	disks map[string]*disks
	wipes int
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

	// What the nodes are that are started: rhythm is theirs, adjust, if not nil,
	// changes their configuration, and controls are their switches; clocks are those of
	// the nodes that have one of their own.
	rhythm   node.Pace
	adjust   func(*config.Config)
	controls controls.Set
	clocks   map[string]clock
	// failpoint, if not nil, is told of the moments that nodes come to, see
	// failpoints.go. The files of worlds that have one are short.
	failpoint func(node, moment string)

	// nodes are those that run. Written by the goroutine that owns the world,
	// read by any through node.
	nodesLock sync.Mutex
	nodes     map[string]*process

	// fell lists the nodes that failed by themselves, with the reason, but for those
	// in ailing, whose disk was broken on purpose.
	fellLock sync.Mutex
	fell     []string
	ailing   map[string]bool

	// record, if not nil, takes the place of the ledger for what senders record.
	record sender.Recorder
	// waiting, if not nil, is told of each reply that a sender waited for.
	waiting func(ledger.Wait)
	// silences are when the senders could not talk to nodes, by their names.
	silencesLock sync.Mutex
	silences     map[string][]ledger.Span

	primaryLock sync.Mutex
	primary     *sink.Server  // nil while it is down
	refusals    refusals      // of any primary of this world
	pace        time.Duration // before the primary's reply to a dot
	faults      *sink.Faults  // of the primary
	// usual is how the primary is where no fault makes it otherwise.
	usual struct {
		pace   time.Duration
		faults []sink.Fault
	}
	// arriving, if not nil, is told of each message that the primary takes,
	// before the primary says so.
	arriving func(ledger.Arrival)

	// home is the senders' host, nil where they are told nothing.
	home *home
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

// without returns all names but one, in order.
func without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(other string) bool { return other == name })
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
