package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cluster/admin"
	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/cluster/transport"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
	"github.com/holdfast-mx/holdfast/delivery"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/delivery/sts"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd"
	"github.com/holdfast-mx/holdfast/smtpd/gate"
	"github.com/holdfast-mx/holdfast/smtpd/ondemand"
)

// The parts of a data directory.
const (
	raftDir   = "raft"
	spoolDir  = "spool"
	peersFile = "peers" // gossip's memory of the others
)

var (
	// ErrDisk: a write or fsync failed. What the disk holds must be looked at
	// before this node goes on; the other nodes have what it had.
	ErrDisk = errors.New("disk failure")
	// ErrConfig: the configuration, or a file that it names, is at fault.
	ErrConfig = errors.New("configuration")
)

// A Node is one running node.
type Node struct {
	config *config.Config
	seams  Seams
	log    *slog.Logger

	serverID  consensus.ServerID
	port      *transport.Port
	spool     *spool.Spool
	stores    consensus.Stores
	directory Directory
	peers     *peer.Peers
	server    *peer.Server
	member    *cluster.Member
	agent     *delivery.Agent
	router    *route.Router
	turns     turns
	tlsAlarms tlsAlarms
	tlsCounts tlspolicy.Counts
	refusals  refusals
	owed      owed
	smtp      *smtpd.Server
	ondemand  *ondemand.Server // nil where atrn_listen is empty
	admin     *admin.Server
	space     *space
	disk      *diskWatch
	memory    *memory
	starts    *cluster.Starts
	start     uint64 // how often this node has started with its data directory
	bootID    uint64
	crowd     int    // how many SMTP connections there may be, see budgetDescriptors
	traceMark string // by which this cluster knows its own Received fields

	stop    context.CancelFunc
	loops   sync.WaitGroup
	closers closers // of what has been started, in that order

	failOnce sync.Once
	failed   chan struct{}
	failure  error
}

// Start brings a node up: its port and spool first, since other nodes may need
// the bodies it holds before it can start Raft itself; then gossip, Raft,
// delivery, SMTP, and what administers them. ctx bounds the start.
func Start(ctx context.Context, c *config.Config, s Seams) (_ *Node, err error) {
	life, stop := context.WithCancel(context.Background())
	n := &Node{config: c, seams: s, log: s.Log, stop: stop, failed: make(chan struct{}), memory: newMemory()}
	defer func() {
		if err != nil {
			stop()
			err = classified(errors.Join(err, n.closers.run(context.Background())))
			n.loops.Wait()
		}
	}()
	identity, err := transport.LoadIdentity(c.CA, c.Cert, c.Key, c.Cluster)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	certificate, err := smtpCertificate(c)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	var boot [8]byte
	if _, err := io.ReadFull(s.Entropy, boot[:]); err != nil {
		return nil, fmt.Errorf("draw a boot id: %w", err)
	}
	n.traceMark = "(Holdfast " + identity.ClusterID() + ")"
	n.bootID = binary.BigEndian.Uint64(boot[:])

	for _, open := range []func(context.Context) error{
		n.budgetDescriptors,
		n.openSpool,
		n.openStores,
		func(context.Context) error { return n.openPort(identity) },
		n.openDirectory,
		n.startMember,
		n.startDelivery,
		func(context.Context) error { return n.startSMTP(certificate) },
		func(context.Context) error { return n.startOnDemand(certificate) },
		n.startAdmin,
	} {
		if err := open(ctx); err != nil {
			return nil, err
		}
	}
	n.loops.Go(func() { n.watch(life) })
	if dns, real := s.Resolver.(*route.DNS); real {
		n.loops.Go(func() { n.proveResolvers(life, dns) })
	}
	n.loops.Go(func() { n.space.watch(life) })
	n.loops.Go(func() { newReporter(n).run(life) })
	n.log.Info("started", "server_id", n.serverID, "smtp", c.SMTPListen, "cluster_port", n.port.Addr().String())
	return n, nil
}

// smtpCertificate reads the certificate for STARTTLS, nil where there is none.
func smtpCertificate(c *config.Config) (*tls.Config, error) {
	if c.SMTPCert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(c.SMTPCert, c.SMTPKey)
	if err != nil {
		return nil, fmt.Errorf("smtp_cert and smtp_key: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

func (n *Node) openSpool(context.Context) error {
	var err error
	n.disk = newDiskWatch(n.seams.Spool)
	n.space = &space{
		free: func() (int, error) { return n.seams.FreeSpace(n.config.DataDir) },
		min:  n.config.DiskFreeMinPercent,
	}
	n.spool, err = spool.Open(n.disk, filepath.Join(n.config.DataDir, spoolDir), spool.Options{
		SegmentBytes: n.seams.SpoolSegment, PoolFiles: n.seams.SpoolPool, Spacious: n.space.ample, Tight: n.space.tight,
		Now: n.seams.Now, Random: n.seams.Entropy, Log: n.log.With("room", "spool"), Controls: n.seams.Controls,
	})
	if err != nil {
		return fmt.Errorf("open the spool: %w", err)
	}
	n.closers.add(func(context.Context) error { return n.spool.Close() })
	return nil
}

// openStores opens Raft's stores, which also say under which incarnation this
// node speaks.
func (n *Node) openStores(context.Context) error {
	var err error
	n.stores, err = n.seams.Stores(filepath.Join(n.config.DataDir, raftDir))
	if err != nil {
		return fmt.Errorf("open Raft's stores: %w", err)
	}
	n.closers.add(func(context.Context) error {
		if n.stores.Close == nil { // given away, or nothing to close
			return nil
		}
		return n.stores.Close()
	})
	incarnation, err := n.stores.Incarnation(n.seams.Entropy)
	if err != nil {
		return err
	}
	n.serverID = consensus.ServerID(string(n.config.Node) + "/" + incarnation)
	n.starts = cluster.NewStarts()
	n.start, err = n.stores.BeginStart()
	return err
}

func (n *Node) openPort(identity *transport.Identity) error {
	ln, err := n.seams.Listen(n.config.ClusterListen)
	if err != nil {
		return fmt.Errorf("cluster_listen: %w", err)
	}
	n.port, err = transport.New(ln, n.seams.Dial, identity, transport.Options{
		ServerID: transport.ServerID(n.serverID), Start: n.start,
		Known:  func(id transport.ServerID) (uint64, bool) { return n.starts.Known(consensus.ServerID(id)) },
		Logger: n.log.With("room", "transport"),
	})
	if err != nil {
		return errors.Join(fmt.Errorf("%w: %w", ErrConfig, err), ln.Close())
	}
	n.closers.add(func(context.Context) error { return n.port.Close() })
	return nil
}

func (n *Node) openDirectory(context.Context) error {
	var err error
	n.directory, err = n.seams.Directory(DirectoryConfig{
		Config: n.config, ServerID: n.serverID, Log: n.log.With("room", "gossip"),
	})
	if err != nil {
		return fmt.Errorf("start gossip: %w", err)
	}
	n.closers.add(func(context.Context) error { return n.directory.Close() })
	n.peers = peer.NewPeers(peer.Config{
		Dial: n.port.DialPeer, Address: n.directory.Address, Log: n.log.With("room", "peer"),
		LineBytesMax: n.config.BytesInFlight, ReconnectMax: n.seams.Pace.Reconnect,
	})
	n.closers.add(func(context.Context) error { return n.peers.Close() })
	return nil
}

func (n *Node) startMember(ctx context.Context) error {
	backend := cluster.NewBackend(n.spool, n.space)
	n.server = peer.NewServer(observedBackend{backend, n.seams.Failpoint}, n.log.With("room", "peer"))
	n.server.UseMemory(n.memory)
	n.loops.Go(func() {
		if err := n.server.Serve(n.port.GRPC()); err != nil {
			n.log.Warn("peer service ended", "cause", err)
		}
	})
	n.closers.add(func(context.Context) error { n.server.Close(); return nil })
	heartbeat := consensus.HeartbeatTimeoutWAN
	if n.config.Latency == config.LAN {
		heartbeat = consensus.HeartbeatTimeoutLAN
	}
	stores := n.stores
	n.stores.Close = nil // the member closes them from here on
	var err error
	n.member, err = cluster.Start(ctx, cluster.Config{
		ID: n.serverID, Log: n.log.With("room", "cluster"), Spool: n.spool, Peers: n.peers, Directory: n.directory,
		Starts: n.starts, Start: n.start, Space: n.space,
		Stores: stores, Stream: raftStream{n.port.Raft(), n.starts}, HeartbeatTimeout: heartbeat,
		CommitInterval: n.seams.Pace.Commit, RollEvery: n.seams.Pace.Roll, DiskStalled: n.disk.stalled,
		SnapshotThreshold: n.seams.Pace.Snapshot, TrailingLogs: n.seams.Pace.Trailing,
		Founding:        fsm.Settings{DoubtWait: fsm.Millis(n.config.DoubtWait.Milliseconds())},
		BootstrapExpect: n.config.BootstrapExpect,
		LeaseDuration:   n.config.LeaseDuration, LeaseBatchMax: n.config.LeaseBatch,
		TickEvery: cmp.Or(n.seams.Pace.Tick, tickEvery), OrphanAge: cmp.Or(n.seams.Pace.Orphan, orphanAge),
		HydrationRate: n.config.HydrationRate, ScrubRate: n.config.ScrubRate,
		Now: n.seams.Now, Entropy: n.seams.Entropy, Controls: n.seams.Controls, Failpoint: n.seams.Failpoint,
	})
	if err != nil {
		return err
	}
	n.closers.add(n.member.Close)
	backend.Attach(n.member)
	return nil
}

func (n *Node) startAdmin(context.Context) error {
	if n.config.AdminSocket == "" {
		return nil
	}
	l, err := admin.Listen(n.config.AdminSocket)
	if err != nil {
		return err
	}
	n.admin = admin.NewServer(admin.NewService(adminCluster{n}, n.log.With("room", "admin")))
	n.loops.Go(func() {
		if err := n.admin.Serve(l); err != nil {
			n.log.Warn("admin service ended", "cause", err)
		}
	})
	n.closers.add(func(ctx context.Context) error { n.admin.Close(ctx); return nil })
	return nil
}

func (n *Node) startDelivery(context.Context) error {
	n.router = route.New(route.Config{Resolver: n.seams.Resolver, Self: n.self})
	c := delivery.Config{
		Node: n.config.Node, Hostname: string(n.config.Hostname), TraceMark: n.traceMark,
		Queue:  observedQueue{deliveryQueue{n.member, n.log.With("room", "delivery"), n.refusals.barred}, n.seams.Failpoint},
		Router: outboundRouter{n.router, n.config.Smarthost},
		Dial: func(ctx context.Context, _, address string) (net.Conn, error) {
			return n.seams.DialSMTP(ctx, address)
		},
		Boot: n.seams.Boot, BootID: n.bootID,
		Log:           n.log.With("room", "delivery"),
		LeaseDuration: n.config.LeaseDuration, LeaseBatch: n.config.LeaseBatch, ConnectionsMax: n.config.DeliveryConnectionsMax,
		Controls: n.seams.Controls, Failpoint: n.seams.Failpoint,
		TLSPolicy: n.tlsPolicy, TLSCounts: &n.tlsCounts,
		TLSAlarm: func(d mail.Domain, f *tlspolicy.Failure) {
			switch news := n.tlsAlarms.note(d, f, n.seams.Now()); {
			case news && f != nil:
				n.log.Error("TLS is not what the domain's policy demands", "domain", d, "cause", f)
			case news:
				n.log.Info("TLS is what the domain's policy demands again", "domain", d)
			}
		},
		RefusedAlarm: func(d mail.Domain, e *smtpclient.StageError) {
			switch news := n.refusals.note(d, e, n.seams.Now()); {
			case news && e != nil:
				n.log.Error("the primary refuses this node", "domain", d, "cause", e)
			case news:
				n.log.Info("the primary takes this node's mail again", "domain", d)
			}
		},
	}
	// Resolvers of tests do not know these lookups.
	dns, real := n.seams.Resolver.(*route.DNS)
	if real {
		c.TLSA, c.STS = dns.TLSA, sts.New(sts.Config{Resolver: dns, Cache: &stsPolicies{member: n.member}, Log: n.log.With("room", "delivery")}).Policy
	}
	var err error
	if n.agent, err = delivery.New(c); err != nil {
		return err
	}
	n.agent.Start()
	n.closers.add(n.agent.Shutdown)
	return nil
}

func (n *Node) startSMTP(certificate *tls.Config) error {
	var err error
	n.smtp, err = smtpd.New(smtpd.Config{
		Hostname: string(n.config.Hostname), Queue: smtpQueue{n}, TLS: certificate, TraceMark: n.traceMark,
		MaxMessageSize: n.config.MaxMessageSize, RecipientsMax: n.config.RecipientsMax,
		CommitPatience: n.config.CommitPatience, BytesInFlight: n.config.BytesInFlight, Memory: n.memory,
		Limits:         gate.Limits{ConnectionsMax: n.crowd, ConnectionsPerClient: n.config.ConnectionsPerClient},
		ExemptNetworks: n.config.ExemptNetworks,
		Now:            n.seams.Now, Logger: n.log.With("room", "smtpd"), Controls: n.seams.Controls,
	})
	if err != nil {
		return fmt.Errorf("%w: %w", ErrConfig, err)
	}
	n.closers.add(n.smtp.Shutdown)
	for _, address := range n.config.SMTPListen {
		l, err := n.seams.Listen(address)
		if err != nil {
			return fmt.Errorf("smtp_listen: %w", err)
		}
		l = heardListener{l, n.agent.Heard}
		n.loops.Go(func() {
			if err := n.smtp.Serve(l); err != nil {
				n.fail(err)
			}
		})
	}
	return nil
}

// watch fails the node when its member has failed.
func (n *Node) watch(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-n.member.Failed():
		err := n.member.Err()
		if n.spool.Err() != nil && !errors.Is(err, consensus.ErrDisk) {
			err = fmt.Errorf("%w: %w", ErrDisk, err)
		}
		n.fail(classified(err))
	}
}

// classified says of an error that is the disk's that it is: a write or fsync
// failed, or what was written is not there any more.
func classified(err error) error {
	if errors.Is(err, ErrDisk) {
		return err
	}
	for _, sign := range []error{consensus.ErrDisk, consensus.ErrDamaged, consensus.ErrOutdated, unix.EIO, unix.EROFS, unix.ENOSPC, unix.EDQUOT} {
		if errors.Is(err, sign) {
			return fmt.Errorf("%w: %w", ErrDisk, err)
		}
	}
	return err
}

func (n *Node) fail(err error) {
	n.failOnce.Do(func() {
		n.failure = err
		close(n.failed)
	})
}

// Member returns the node's part in the cluster.
func (n *Node) Member() *cluster.Member { return n.member }

// Memory returns what lends the bodies of new messages their chunks.
func (n *Node) Memory() mail.Memory { return n.memory }

// Holds reports whether a body is on stable storage here.
func (n *Node) Holds(ref mail.BodyRef) bool { return n.spool.Held(ref) }

// OpenBody reads a body that is held here.
func (n *Node) OpenBody(ref mail.BodyRef) (io.ReadSeekCloser, error) { return n.spool.Open(ref) }

// Failed returns a channel that is closed when the node must not go on; Err
// then says why.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Err returns why the node failed, or nil.
func (n *Node) Err() error {
	select {
	case <-n.failed:
		return n.failure
	default:
		return nil
	}
}

// Close stops the node in the reverse order of its start: no new mail, leases
// handed back, Raft, the port, the spool. ctx bounds how long transactions and
// deliveries under way may take to finish.
func (n *Node) Close(ctx context.Context) error {
	n.stop()
	err := n.closers.run(ctx)
	n.loops.Wait()
	return err
}

// closers are what ends the parts of a node, in the order of their start.
type closers []func(context.Context) error

func (c *closers) add(end func(context.Context) error) { *c = append(*c, end) }

// run ends the parts, the last started first, each once.
func (c *closers) run(ctx context.Context) error {
	var failures []error
	for i := len(*c) - 1; i >= 0; i-- {
		failures = append(failures, (*c)[i](ctx))
	}
	*c = nil
	return errors.Join(failures...)
}
