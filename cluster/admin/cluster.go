package admin

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Cluster is the node that the service speaks for. All methods are safe for
// concurrent use, and none but Do, OpenBody, Scrub, Compare and ChangeMember waits for another node.
type Cluster interface {
	// View returns a snapshot of the queue as this node has applied it, which
	// stays as it is while the queue goes on.
	View() *fsm.State
	// Do has an action committed and applied, here or at the leader, and returns
	// its result. Its error is ErrNotAccepted or ErrOutcomeUnknown; what is
	// neither is taken for the latter.
	Do(context.Context, fsm.Action) (fsm.Result, error)
	// Understood reports whether every server is known to understand an action. One
	// that is not would not be accepted.
	Understood(fsm.Action) bool
	// TLSPolicy reads a TLS policy; the error says what is wrong with it.
	TLSPolicy(mode string, pins []string, authorities string, names []string) (fsm.TLSPolicy, error)
	// CallerPins reads the keys of callers; the error says what is wrong with them.
	CallerPins(pins []string) ([][32]byte, error)
	// CallerSecret salts and hashes the password of a caller; the error says what is
	// wrong with the password.
	CallerSecret(user, password string) (fsm.PasswordHash, error)
	// TLSReport returns what TLS the next hops showed to this node, by day, the oldest
	// first.
	TLSReport() []TLSDay
	// OpenBody opens a body, which it has fetched first where this node lacks it.
	OpenBody(context.Context, mail.BodyRef) (io.ReadSeekCloser, error)
	// Status describes this node at this moment.
	Status(context.Context) Status
	// Members lists who is known by gossip or has a vote, in any order.
	Members() []Member
	// Scrub begins a scrub on the named node, or ends it, and tells how far it is.
	// The error is ErrNoSuchNode, ErrUnreachable, or what the node said.
	Scrub(ctx context.Context, node fsm.NodeName, a ScrubAction) (Scrub, error)
	// Compare asks every server for the digest of its copy of the queue at the same
	// entry of the log.
	Compare(context.Context) []Copy
	// ChangeMember changes the cluster's servers. The refusal says why it must not
	// be done; errors are as Do's.
	ChangeMember(ctx context.Context, c MemberChange) (refusal string, err error)
}

// A TLSDay is what was counted on one day of UTC (RFC 8460).
type TLSDay struct {
	Start    time.Time
	Policies []TLSPolicyCount
}

// A TLSPolicyCount is about one domain and one source of its policy.
type TLSPolicyCount struct {
	Domain            mail.Domain // "" for those that are not told apart
	Type              string
	Succeeded, Failed uint64 // sessions
	Failures          []TLSFailureCount
}

// A TLSFailureCount is how many sessions failed in one way.
type TLSFailureCount struct {
	Result, Host string
	Sessions     uint64
}

// A MemberChange adds a node to the cluster's servers, or removes one.
type MemberChange struct {
	Name   fsm.NodeName
	Remove bool // otherwise it is added
	// Force removes it also where that may lose messages.
	Force bool
}

// A Copy is one server's copy of the queue.
type Copy struct {
	Server   fsm.NodeName
	Index    fsm.Index // of the last entry applied to it
	Sum      [sha256.Size]byte
	Messages uint64
	Silent   error // why it told nothing
}

// A ScrubAction is what is to be done about a scrub.
type ScrubAction uint8

// The actions.
const (
	ScrubLook ScrubAction = iota + 1
	ScrubStart
	ScrubStop
)

var (
	// ErrNotAccepted: the action was certainly never appended to the log, and has
	// no effect now or later.
	ErrNotAccepted = errors.New("not accepted")
	// ErrOutcomeUnknown: the action may have been appended, and may yet be
	// committed.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrNoSuchNode: the cluster has no node of that name.
	ErrNoSuchNode = errors.New("there is no such node")
	// ErrUnreachable: the node did not answer.
	ErrUnreachable = errors.New("the node does not answer")
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
	// Complete are the servers that are known to hold every live body, in any
	// order: no live body lies in fewer spools.
	Complete []fsm.NodeName
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
	ATRNCalls        uint64 // connections over which a primary called for its mail
	ATRNAuthFailed   uint64 // wrong names, passwords and keys, those barred included
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
	Nonvoter       bool    // receives the log, without a vote
	// How it appears to other mail servers; empty when gossip knows nothing of it.
	Hostname      string
	SMTPAddresses []string // address:port
	// Hydration and Scrub are what it said when it was last heard, at Said; all
	// zero where it never was. Silent is why it did not answer since.
	Hydration Hydration
	Scrub     Scrub
	Said      time.Time
	Silent    error
}

// A Hydration is how far a node is with fetching the live bodies that it lacks.
type Hydration struct {
	Known        bool // it has counted Missing
	Missing      uint64
	MissingBytes mail.ByteSize
	Fetched      uint64 // since its process started
	FetchedBytes mail.ByteSize
	Rate         mail.ByteSize // a second, of late
	// NotFound counts those missing of which no node that could be asked has a
	// good copy; Lost those of them of which no server of the cluster has. WaitingFor
	// names nodes that could not be asked for the others.
	NotFound    uint64
	Lost        uint64
	WaitingFor  string
	LastError   string
	LastErrorAt time.Time // zero: none
}

// A Scrub is how far a scrub is, or what came of it.
type Scrub struct {
	Running, Stopped bool
	Began, Ended     time.Time // Began is zero where there was none
	Bodies           uint64    // read
	Bytes            mail.ByteSize
	Total            uint64 // live when it began
	TotalBytes       mail.ByteSize
	Bad              uint64
	Repaired         uint64
	Unread           uint64
	Problem          string
}
