package peer

import (
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

var (
	// ErrNotAppended: the command was certainly never appended to the log, and
	// never will be by this call.
	ErrNotAppended = errors.New("not appended")
	// ErrOutcomeUnknown: the command may have been appended. Ask again with the
	// same queue id.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrTooLarge: the command, the entry made of it, or the body is over a
	// limit. Of a command it is as certain as ErrNotAppended, and comes with it.
	ErrTooLarge = errors.New("too large")
	// ErrPassed: the entry at which a queue was to be looked at was applied before, or
	// came in a snapshot.
	ErrPassed = errors.New("that entry is past")
	// ErrNotHeld: the peer does not hold the body.
	ErrNotHeld = errors.New("body not held")
	// ErrMismatch: the octets do not have the size and digest of the reference.
	ErrMismatch = errors.New("body does not match its reference")
	// ErrDamaged: the peer holds the body and cannot read it.
	ErrDamaged = errors.New("body damaged")
	// ErrNotStored: the peer received the body and could not store it.
	ErrNotStored = errors.New("body not stored")
	// ErrQueueFull: too many octets lie in line for the peer.
	ErrQueueFull = errors.New("push queue full")
	// ErrUnreachable: there is no connection to the peer.
	ErrUnreachable = errors.New("peer unreachable")
	// ErrClosed: Close has been called.
	ErrClosed = errors.New("closed")
)

// A Backend is what a Server answers from. Its methods are called from many
// goroutines at once.
type Backend interface {
	// StoreBodies returns once each of the bodies is on stable storage, or has an
	// error of its own. Storing a body that is held already succeeds. The bodies
	// match their references, and are not to be used after the return. Before it
	// waits for the disk it calls taken, once, with the places of those bodies that
	// only an error of the disk or the end of the process can keep from it.
	StoreBodies(bodies []Arrived, taken func(places []int)) []error
	// OpenBody returns the body for reading. The error wraps ErrNotHeld where it
	// is not held. An error while reading means that it is damaged.
	OpenBody(ref mail.BodyRef) (io.ReadSeekCloser, error)
	// Propose appends the commands of the node called from, as leader, in their
	// order, and returns what came of each. From is what the caller's certificate
	// says; what a command says of its origin is for the backend to compare.
	Propose(ctx context.Context, from string, proposals []Proposal) []Outcome
	// Pull leases messages to r.Holder, as leader.
	Pull(ctx context.Context, r PullRequest) (PullReply, error)
	// Health tells how this node is.
	Health(Inquiry) Health
	// Scrub begins a scrub of this node's bodies, or ends the one that runs, for
	// the node called from, and tells how far it is. Doing what is done already is
	// no error.
	Scrub(from string, a ScrubAction) (Scrub, error)
	// Digest returns the digest of this node's copy of the queue as the first entry
	// from after on leaves it, for which it waits. The error wraps ErrPassed where it
	// waits for nothing.
	Digest(ctx context.Context, after uint64) (Digest, error)
	// ChangeServers changes the cluster's servers as leader, for the node called
	// from. The refusal says why it must not be done. An error that wraps
	// ErrNotAppended means that certainly nothing was changed; any other leaves the
	// outcome unknown.
	ChangeServers(ctx context.Context, from string, m Membership) (refusal string, err error)
}

// An Arrived body is one that a peer pushed.
type Arrived struct {
	Ref  mail.BodyRef
	Body *mail.Body
}

// A Proposal is an encoded command and the body that it names, if any.
type Proposal struct {
	Command []byte
	Body    *mail.BodyRef
}

// An Outcome is what came of a Proposal: the encoded result once it is applied,
// or an error. One that wraps ErrNotAppended or ErrTooLarge means that it
// certainly was not appended; any other leaves that unknown.
type Outcome struct {
	Result []byte
	Err    error
}

// A PullRequest asks for up to Max messages of a relay domain, or of what reports to a
// host wait in; for none where Max is zero. Holder is the node that asks: a Server sets it from the caller's certificate.
// It has so many Connections to the next hop.
type PullRequest struct {
	Holder      string
	Domain      string
	Max         int
	Connections int
	Seen        Feedback
}

// Feedback is what a node saw of a next hop in one lease.
type Feedback struct {
	Token    uint64
	Answered int
	Deferred int
	Lost     bool
	Mean     time.Duration // from a final dot to its reply; 0 where there was none
}

// A PullReply is a lease, or has no messages where nothing is due or there are too
// many connections.
type PullReply struct {
	Token    uint64
	Messages []mail.QueueID
	// Connections is how many the caller may have to the next hop; -1 where the
	// leader's version does not say it.
	Connections int
}

// An Inquiry says what somebody wants to know of a node's health.
type Inquiry struct {
	// ServerID is the asking server's own, where it wants to know what was seen
	// of it; a Server passes on only one that has the caller's name.
	ServerID string
	// Brief: Leader may be the node's own belief.
	Brief bool
}

// Seen is what a node has seen another one promise: see consensus.Promises.
type Seen struct{ Start, Term, VoteTerm, Index uint64 }

// Health is how a node is, by its own account.
type Health struct {
	ServerID       string // <name>/<incarnation>
	Boot           uint64 // drawn at each start of the process
	Applied        uint64 // the last entry applied
	Leader         bool
	Term           uint64
	Bodies         uint64 // held in the spool
	BodyBytes      mail.ByteSize
	DiskFree       mail.ByteSize // on the spool's disk
	CommandVersion uint32        // the newest that the node can apply
	DiskLow        bool          // it takes no mail from clients
	DiskFull       bool          // it takes no bodies from other nodes
	// Seen is what it has seen of the server that asks, if it was asked and can
	// tell yet.
	Seen      Seen
	SeenOK    bool
	Hydration Hydration
	Scrub     Scrub // zero where there was none
}

// A Hydration is how far a node is with getting the live bodies that it lacks.
type Hydration struct {
	// Known says that it has counted them, up to Health.Applied: with Missing zero
	// it holds every live body up to there.
	Known        bool
	Missing      uint64
	MissingBytes mail.ByteSize
	Fetched      uint64 // since the process started
	FetchedBytes mail.ByteSize
	Rate         mail.ByteSize // a second, of late
	// NotFound counts those missing of which no node that could be asked has a
	// good copy; Lost those of them of which no server of the cluster has. WaitingFor
	// names nodes that could not be asked for the others.
	NotFound      uint64
	Lost          uint64
	WaitingFor    string
	LastError     string // "" where nothing went wrong since the process started
	LastErrorUnix int64
}

// A Scrub is how far a scrub is, or what came of the last one.
type Scrub struct {
	Running    bool
	Stopped    bool  // before its end
	BeganUnix  int64 // 0: there was none
	EndedUnix  int64
	Bodies     uint64 // read
	Bytes      mail.ByteSize
	Total      uint64 // live when it began
	TotalBytes mail.ByteSize
	Bad        uint64 // damaged
	Repaired   uint64 // of those, fetched again
	Unread     uint64 // could not be looked at
	Problem    string // why
}

// A Digest is that of a node's copy of the queue.
type Digest struct {
	Index    uint64 // of the last entry applied
	Sum      [sha256.Size]byte
	Messages uint64
}

// A ScrubAction is what a node is asked to do about its scrub.
type ScrubAction uint8

// The actions.
const (
	ScrubStart ScrubAction = iota + 1
	ScrubStop
	ScrubLook // only tell how far it is
)

// A Membership is a change of the cluster's servers.
type Membership struct {
	Action MembershipAction
	Name   string // of the node
	// Force removes it also where that may lose messages.
	Force bool
}

// A MembershipAction is what a Membership does.
type MembershipAction uint8

// The actions.
const (
	MemberAdd MembershipAction = iota + 1
	MemberRemove
)

// Urgency says whether somebody waits for a body.
type Urgency uint8

// The urgencies.
const (
	Urgent     Urgency = iota // somebody waits
	Background                // it is to be had sooner or later
)

// A NotAppendedError is an ErrNotAppended with what the leader said. A Backend
// may return one to name another leader.
type NotAppendedError struct {
	Reason   string
	Leader   string // the server id of the leader, "" where it is not known
	TooLarge bool   // it is an ErrTooLarge too
}

func (e *NotAppendedError) Error() string {
	s := ErrNotAppended.Error()
	if e.TooLarge {
		s += ": " + ErrTooLarge.Error()
	}
	if e.Reason != "" {
		s += ": " + e.Reason
	}
	if e.Leader != "" {
		s += " (the leader is " + e.Leader + ")"
	}
	return s
}

// Is makes errors.Is find the sentinels.
func (e *NotAppendedError) Is(target error) bool {
	return target == ErrNotAppended || e.TooLarge && target == ErrTooLarge
}
