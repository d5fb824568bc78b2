package consensus

import (
	"errors"
	"fmt"
)

var (
	// ErrNotAppended: the entry is in no log and will never be committed. It
	// wraps the cause. Everything else that Propose returns as an error leaves
	// the outcome open.
	ErrNotAppended = errors.New("entry not appended")
	// ErrOutcomeUnknown: the entry may be in some log, and may be committed
	// now, later or never.
	ErrOutcomeUnknown = errors.New("outcome of the entry is unknown")
	// ErrNotLeader is a cause of ErrNotAppended: ask the leader instead.
	ErrNotLeader = errors.New("this node is not the leader")
	// ErrTooLarge is a cause of ErrNotAppended: data and name together are
	// longer than EntryBytesMax.
	ErrTooLarge = errors.New("entry too large")
	// ErrBodyNotHeld is a cause of ErrNotAppended: the leader itself has not
	// got the body on stable storage, or is about to delete it.
	ErrBodyNotHeld = errors.New("body not held here")
	// ErrShutdown: the node is shutting down, or has.
	ErrShutdown = errors.New("consensus is shut down")
	// ErrBodyLost is what Start and Err return when the log names, above the
	// floor, a body that this node cannot read and no peer could give.
	ErrBodyLost = errors.New("a body that the log names is lost on this node")
	// ErrNotCommitted: RaiseFloor was asked for an index that this node does
	// not know to be committed.
	ErrNotCommitted = errors.New("index not known to be committed")
	// ErrDisk: a write to the log or the stable store failed. What it left on
	// the disk is not known.
	ErrDisk = errors.New("a write to Raft's stores failed")
	// ErrDamaged: the stores hold what was never written to them. The member
	// cannot keep the promises that it made under its server id, since it does
	// not know them any more.
	ErrDamaged = errors.New("Raft's stores are damaged")
)

// errStalled is why a node with a write that hangs neither leads nor stands for
// election.
var errStalled = errors.New("a write to the disk has been running for too long; not leading")

// errOtherTerm is why an entry of a batch has no effect: leadership changed while
// the batch was appended.
var errOtherTerm = errors.New("appended in another term than the entries before it")

// errLogReplaced is why a node ends that installed a snapshot over a log that
// conflicted with it.
var errLogReplaced = errors.New("a snapshot replaced a log that was longer and conflicted with it; " +
	"this node has to be started again")

// damaged says of stores what is wrong with them, what that means, and what to
// do.
func damaged(cause error) error {
	return fmt.Errorf("%w: %w. What this node voted for and acknowledged is not known any more, so it must not "+
		"speak under its server id again. Look at the disk; then move the data directory away and start the node "+
		"with an empty one: it comes back under a new incarnation, and the other nodes hold what was here", ErrDamaged, cause)
}
