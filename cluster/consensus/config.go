package consensus

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"strings"
	"time"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A ServerID names one member in one life of its data directory:
// "<name>/<incarnation>". A member that lost its disk comes back under another
// server id.
type ServerID string

// Name returns the member's name, the part that its certificate proves.
func (id ServerID) Name() string {
	name, _, _ := strings.Cut(string(id), "/")
	return name
}

// Incarnation returns the life of the member's data directory.
func (id ServerID) Incarnation() string {
	_, incarnation, _ := strings.Cut(string(id), "/")
	return incarnation
}

// A Server is one member of the Raft configuration.
type Server struct {
	ID      ServerID
	Address string // host:port of the member's cluster port
	Voter   bool
}

// Bodies is what consensus needs to know of the bodies on this node. All
// methods are safe for concurrent use.
type Bodies interface {
	// Held reports whether the body is here, on stable storage, whole.
	Held(mail.BodyRef) bool
	// Pin keeps a body from being deleted until release, which may be called once.
	// It is false for a body that is not here or about to be deleted. A body is
	// here that is held, or that is whole and on its way to stable storage, from
	// which only the end of the process or an error of the disk can keep it. It
	// must not block.
	Pin(mail.BodyRef) (release func(), here bool)
	// Await waits while a pinned body is on its way. It is held when Await returns
	// nil. The error says that it never will be: this node's disk has failed, or
	// the bodies are closed.
	Await(mail.BodyRef) error
	// Hasten says that Await is about to be called for bodies that are on their way:
	// they need not wait any more for others to go with.
	Hasten()
	// Arrived returns a channel that is closed once the body is here, by whichever
	// route it came. It is a hint.
	Arrived(mail.BodyRef) <-chan struct{}
	// Want starts, or joins, a fetch of the body, from that server first. It
	// returns at once; the fetch goes on when the asker has given up.
	Want(ref mail.BodyRef, from ServerID)
	// Verify reads the body whole and checks its digest.
	Verify(mail.BodyRef) error
	// Repair fetches the body from any peer and stores it, in place of an
	// unreadable one.
	Repair(ctx context.Context, ref mail.BodyRef) error
}

// FSM is the replicated state. Raft calls its methods from one goroutine,
// except that the WriterTo of a snapshot is written while Apply goes on.
type FSM interface {
	// Apply is called for each committed command in order of index, again
	// after each start. Body is what the entry names, nil if nothing: whether
	// it is the body that the command names is for Apply to check.
	Apply(index uint64, data []byte, body *mail.BodyRef) any
	// Snapshot captures the state in O(1).
	Snapshot() (io.WriterTo, error)
	// Restore replaces the state by what a snapshot wrote.
	Restore(io.Reader) error
	// Messages returns how many messages the state has: a snapshot's size grows
	// with them. It may be called from any goroutine.
	Messages() int
}

// StreamLayer carries Raft's connections. Accept returns only connections
// whose peer is a proven member of this cluster; Dial proves the same of the
// other end. Both should detect a dead peer by themselves (TCP keepalive and
// user timeout): a snapshot is received without a deadline.
type StreamLayer interface {
	Accept() (net.Conn, error)
	Close() error
	Addr() net.Addr
	Dial(ctx context.Context, id ServerID, addr string) (net.Conn, error)
}

// Stores is where a member keeps its log, term, vote, floor and snapshots. Log
// and Stable must live and die together: a floor of another history is unsafe.
//
// A Log that has the method Attested lets entries and bodies be written at the
// same time; with another one the bodies are written first.
type Stores struct {
	Log       raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	Close     func() error // may be nil
}

// Heartbeat timeouts. Heartbeats take no fast path around the disk, so the
// timeout has to cover the slowest fsync.
const (
	HeartbeatTimeoutLAN = 1500 * time.Millisecond
	HeartbeatTimeoutWAN = 5 * time.Second
)

// DefaultCommitInterval is how often followers learn the commit index when
// nothing else is sent to them.
const DefaultCommitInterval = 50 * time.Millisecond

// DefaultSnapshotThreshold is how many entries there are between two snapshots,
// at the least.
const DefaultSnapshotThreshold = 8192

// never is longer than any process runs.
const never = 100 * 365 * 24 * time.Hour

// Limits.
const (
	// EntryBytesMax is the greatest size of an entry, its data and the name of
	// its body together.
	EntryBytesMax = 64 << 10
	// appendBytesMax is the most entry bytes that one request carries. Its
	// deadline is rpcTimeout, so a slow link must be able to carry this much
	// in that time.
	appendBytesMax = 512 << 10
	// entryOverheadBytes is what an entry costs on the wire beside its data
	// and its name, rounded up.
	entryOverheadBytes = 128
	// appendEntriesMax is the most entries in one request and in one write.
	appendEntriesMax = 64
	// gateWait is how long a request waits for the bodies that it names. Not
	// longer: meanwhile the entry may be committed by others, and only a
	// request that is sent again says so.
	gateWait = time.Second
	// gateRequestsMax bounds the requests that wait at once. A leader has one
	// at a time in flight to us; more come only from leaders that gave up.
	gateRequestsMax = 64
	// proposalsMax bounds the proposals, those included whose caller has given
	// up and whose entry is neither committed nor cut off yet. It is less than
	// the trailing logs, so a deposed leader's uncommitted tail can never
	// reach past a snapshot of its successor (hashicorp/raft#697).
	proposalsMax = 4096
	// enqueueMax is how long a proposal waits for Raft to take it.
	enqueueMax = 5 * time.Second
	// A write may take so many heartbeat timeouts, and at most so long, before
	// this node stops leading. With what the others need to notice it, a disk
	// that hangs costs the leader its leadership within ten seconds.
	storeStallHeartbeats = 4
	storeStallMax        = 6 * time.Second
	// stallLooksPerHeartbeat is how often in a heartbeat timeout that is looked
	// at.
	stallLooksPerHeartbeat = 4
	// rpcHeartbeats is the deadline of a request in heartbeat timeouts; it
	// covers gateWait and a slow write.
	rpcHeartbeats = 3
	// repairPatience is how long a node whose log names a lost body tries to
	// get it from its peers before it stops, or gives up its start.
	repairPatience = 30 * time.Second
)

// Config says what a Node is made of. Zero durations and counts mean the
// defaults named beside them.
type Config struct {
	ID     ServerID
	FSM    FSM
	Bodies Bodies
	// Stream and Stores belong to the node from the call of Start on, and are
	// closed by it, also when Start fails.
	Stream StreamLayer
	Stores Stores
	Logger *slog.Logger

	// HeartbeatTimeout is how long a follower waits for its leader before it
	// stands for election, and how long a leader goes on without a majority.
	// Default: HeartbeatTimeoutLAN.
	HeartbeatTimeout time.Duration
	// CommitInterval is how often a follower is told the commit index when
	// nothing else is sent to it. Default: DefaultCommitInterval.
	CommitInterval time.Duration
	// StoreStallMax is how long one write to the disk may take before this node
	// gives up leadership, and does not stand for election. Default: four
	// heartbeat timeouts, at most six seconds.
	StoreStallMax time.Duration
	// Acknowledged is the last entry that other servers have seen this one
	// acknowledge. Up to there the start-up check cuts nothing off.
	Acknowledged uint64
	// Observe is shown the data of each command in the log before Raft runs,
	// committed or not. Nil where nobody wants to know.
	Observe func(data []byte)
	// DiskStalled reports whether another write that this node's word depends
	// on, that of a body for example, has been running for longer than limit. It
	// is asked before each request and must not block. Nil where there is none.
	DiskStalled func(limit time.Duration) bool
	// TrailingLogs is how many entries stay in the log behind a snapshot.
	// Default: 10240.
	TrailingLogs uint64
	// SnapshotThreshold is how many entries there must be since the last
	// snapshot for a new one, at the least; more where the state is large.
	// Default: DefaultSnapshotThreshold.
	SnapshotThreshold uint64
	// SnapshotInterval is how often that is looked at, with a jitter of the same
	// size. Default: 5 seconds.
	SnapshotInterval time.Duration

	// Controls breaks single rules on purpose, so that tests can show that they
	// would notice.
	Controls controls.Set
	// Failpoint is called at named moments, for tests that end the node there.
	Failpoint controls.Failpoint
	// stored is told of each write of entries to the log before it happens. Nil
	// outside of tests.
	stored func([]*raft.Log)
}

func (c Config) withDefaults() (Config, error) {
	switch {
	case c.ID.Name() == "" || !strings.Contains(string(c.ID), "/") || strings.Contains(string(c.ID), addressSeparator):
		return c, errors.New("server id: want <name>/<incarnation>")
	case c.FSM == nil, c.Bodies == nil, c.Stream == nil, c.Logger == nil:
		return c, errors.New("config of consensus: FSM, Bodies, Stream and Logger are required")
	case c.Stores.Log == nil, c.Stores.Stable == nil, c.Stores.Snapshots == nil:
		return c, errors.New("config of consensus: stores are required")
	}
	if c.HeartbeatTimeout == 0 {
		c.HeartbeatTimeout = HeartbeatTimeoutLAN
	}
	if c.CommitInterval == 0 {
		c.CommitInterval = DefaultCommitInterval
	}
	if c.StoreStallMax == 0 {
		c.StoreStallMax = min(storeStallHeartbeats*c.HeartbeatTimeout, storeStallMax)
	}
	if c.TrailingLogs == 0 {
		c.TrailingLogs = 10240
	}
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = DefaultSnapshotThreshold
	}
	if c.SnapshotInterval == 0 {
		c.SnapshotInterval = 5 * time.Second
	}
	return c, nil
}

// rpcTimeout is the deadline of one request and its answer.
func (c Config) rpcTimeout() time.Duration {
	return max(rpcHeartbeats*c.HeartbeatTimeout, 3*gateWait)
}

// raftConfig is the library's configuration.
func (c Config) raftConfig(notify chan<- bool) *raft.Config {
	r := raft.DefaultConfig()
	r.LocalID = raft.ServerID(c.ID)
	r.HeartbeatTimeout = c.HeartbeatTimeout
	r.ElectionTimeout = c.HeartbeatTimeout
	// As long as a heartbeat may wait behind a follower's fsync.
	r.LeaderLeaseTimeout = c.HeartbeatTimeout
	r.CommitTimeout = c.CommitInterval
	r.MaxAppendEntries = appendEntriesMax
	r.TrailingLogs = c.TrailingLogs
	// Raft takes snapshots when it is asked to, see snapshotter: it would count
	// the entries and nothing else.
	r.SnapshotThreshold = math.MaxUint64
	r.SnapshotInterval = never
	// A removed server may be added again without a restart.
	r.ShutdownOnRemove = false
	// So that what is proposed together is written together. An Apply after
	// Shutdown can then be left without an answer; endWith gives it one.
	r.BatchApplyCh = true
	r.NoLegacyTelemetry = true
	r.NotifyCh = notify
	r.Logger = newLogger(c.Logger)
	return r
}
