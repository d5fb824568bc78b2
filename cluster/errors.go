package cluster

import "errors"

var (
	// ErrNotAccepted: the message or command was certainly never appended to the
	// log, or was committed and refused. It will have no effect, now or later.
	ErrNotAccepted = errors.New("not accepted")
	// ErrTooLarge: the envelope does not fit into one log entry. Certain.
	ErrTooLarge = errors.New("too large for one log entry")
	// ErrOutcomeUnknown: the command may have been appended, and may yet be
	// committed. Nobody may be told that it failed.
	ErrOutcomeUnknown = errors.New("outcome unknown")
	// ErrNoLeader: this node knows of no leader, so it cannot commit anything.
	ErrNoLeader = errors.New("no leader: this node cannot reach a majority of the voters")
	// ErrCatchingUp: this node follows a leader, and its copy of the queue is
	// still behind.
	ErrCatchingUp = errors.New("this node is catching up with the leader")
	// ErrDiskHangs: a write to this node's disk does not come back.
	ErrDiskHangs = errors.New("a write to the disk of this node hangs")
	// ErrNotUnderstood: not every server of the cluster is known to understand the
	// command, and one that does not would stop at it. Certain.
	ErrNotUnderstood = errors.New("not every server is known to understand it")
	// ErrStopping: the member is shutting down.
	ErrStopping = errors.New("stopping")
)
