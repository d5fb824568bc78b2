// Package controls is what tests do to a node from inside: switches that break a
// rule, and failpoints, at which a test may end it.
//
// Switches are the negative controls: one switch for each rule that the
// promises rest on, which breaks that rule on purpose, so that the tests can show
// that they would notice. Its values come through constructors, and there is no
// state beside them.
//
// The switches are in builds with the tag controls alone. In every other build a
// Set is an empty struct and Has the constant false, so that the compiler leaves
// out what stands behind a switch. TestProductHasNoSwitch looks into the binary.
//
// A Failpoint is nil in the product, and does nothing. docs/testing.md lists them.
//
// Package trial has the scripts' side: what each control breaks, and what must
// notice.
package controls

// A Switch breaks one rule.
type Switch uint32

// The switches. What has a seam already is broken through the seam: the script of
// such a switch puts another file system in place.
const (
	// FsyncRemoved: files and directories are not synced. It is a file system.
	FsyncRemoved Switch = 1 << iota
	// EarlyReply: Submit returns when the Accept is on its way, and not when it is
	// committed.
	EarlyReply
	// EarlyDelete: a body is deleted that an entry names which is in the log and
	// not applied.
	EarlyDelete
	// RuleOff: no server asks for the body that an entry names.
	RuleOff
	// HeartbeatFastPath: Raft handles heartbeats beside its main loop.
	HeartbeatFastPath
	// UnknownRefused: an unknown outcome is answered 451.
	UnknownRefused
	// LeaseUnchecked: the final dot is sent whatever has become of the lease.
	LeaseUnchecked
	// ChecksumUnchecked: a body is read without a look at its digest.
	ChecksumUnchecked
	// StrayCRPassed: a CR that ends no line stays in the body.
	StrayCRPassed
	// WallClockExpiry: log time follows the leader's wall clock.
	WallClockExpiry
	// UnknownNameBounced: mail for a domain whose name DNS denies is refused for
	// good.
	UnknownNameBounced

	// What the tests of cluster/consensus break beside that.

	// FloorOff: the floor is never written.
	FloorOff
	// LiveFloor: a leader announces the floor as it is now.
	LiveFloor
	// NonvotersSpared: no body is asked for while this node has no vote.
	NonvotersSpared
	// LatchOff: a failed write does not end the node.
	LatchOff
	// StartCheckOff: a node starts with whatever its log names.
	StartCheckOff
	// Pipelined: Raft's pipelining is on.
	Pipelined
	// WrittenCounts: what is not durable yet counts as if it were.
	WrittenCounts
	// CutsAll: the start-up check cuts off every entry whose body is missing.
	CutsAll
)
