package admin

import (
	"context"
	"errors"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Cluster is the node that the service speaks for. All methods are safe for
// concurrent use, and none but Do waits for another node.
type Cluster interface {
	// View returns a snapshot of the queue as this node has applied it, which
	// stays as it is while the queue goes on.
	View() *fsm.State
	// Do has an action committed and applied, here or at the leader, and returns
	// its result. Its error is ErrNotAccepted or ErrOutcomeUnknown; what is
	// neither is taken for the latter.
	Do(context.Context, fsm.Action) (fsm.Result, error)
	// Status describes this node at this moment.
	Status(context.Context) Status
	// Members lists who is known by gossip or has a vote, in any order.
	Members() []Member
}

var (
	// ErrNotAccepted: the action was certainly never appended to the log, and has
	// no effect now or later.
	ErrNotAccepted = errors.New("not accepted")
	// ErrOutcomeUnknown: the action may have been appended, and may yet be
	// committed.
	ErrOutcomeUnknown = errors.New("outcome unknown")
)

// Status describes one node. What View tells is not repeated in it.
type Status struct {
	Cluster  string
	Node     fsm.NodeName
	ServerID string // <node>/<incarnation>
	Version  string // of the daemon, for people

	Leader   fsm.NodeName // "" when none is known
	IsLeader bool
	Term     uint64
	Commit   fsm.Index
	Floor    fsm.Index
	Voters   []fsm.NodeName // in any order
	// Quorum says that this node can have something committed now, as far as it
	// knows: it leads, or it has lately heard from a leader.
	Quorum bool
	// CatchingUp says that this node has yet to apply what was committed before
	// it found its leader.
	CatchingUp bool
	// LastContact is when this node last heard from the leader; on the leader
	// now. Zero when it never did.
	LastContact time.Time

	SMTPSessions int
	Spool        SpoolStats
	Counters     NodeCounters
	// FewestCopies is in how many spools the least replicated live body lies;
	// nil while nobody counts that.
	FewestCopies *int
	// Alarms are those that only this node can know of, of its disk for one.
	Alarms []Alarm
	// SMTPAddresses are where the members take mail, HOST:PORT: no relay domain
	// may be sent there.
	SMTPAddresses []string
	// Hostname is this node's own in SMTP.
	Hostname mail.Domain
}

// SpoolStats describes this node's spool.
type SpoolStats struct {
	Bodies    int           // held
	Bytes     mail.ByteSize // of those
	Segments  int
	DiskBytes mail.ByteSize // of all segments
}

// NodeCounters only grow, from zero at the start of the process.
type NodeCounters struct {
	AcceptUnknown    uint64 // sessions closed without a reply after the final dot
	SMTPAccepted     uint64 // messages answered 250
	SMTPRefused      uint64 // messages answered 4yz or 5yz after the final dot
	SMTPConnections  uint64
	DeliveryAttempts uint64
}

// A Member is one node as this one knows it: by gossip, by its vote, or both.
type Member struct {
	Name           fsm.NodeName
	ServerID       string // "" when it is not known to Raft
	ClusterAddress string
	GossipStatus   string // "alive", "suspect", "dead", "left"; "" when gossip knows nothing of it
	Voter          bool
	Leader         bool
	HasState       bool
	CommandVersion uint32
	Lag            *uint64 // entries behind the leader's log; nil when unknown
}
