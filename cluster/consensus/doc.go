// Package consensus is one member's part in Raft, and the only door to
// hashicorp/raft and raft-boltdb. It keeps the log of commands and binds the
// bodies, which lie beside the log, to it by the append rule of
// docs/architecture.md:
//
//	A server, voter or not, counts as having an entry that names a body only
//	when both are on stable storage there, or when the entry is known to be
//	committed; in that case it first makes its floor at least the request's
//	commit index. It writes such an entry only when it has the body whole. The
//	floor is a durable index: every entry at or below it is committed. A leader
//	tells its followers max(commit index, min(floor as read at process start,
//	last entry of the request)) as commit index.
//
// # What it promises
//
//   - What is applied is on stable storage at a majority of the voters, the
//     bodies that it names included.
//   - Propose says ErrNotAppended only when the entry is certainly in no log,
//     and ErrOutcomeUnknown whenever it may still be committed.
//   - The first failed write to the log ends the node: Failed is closed,
//     nothing more is written, and leadership is given up. A log write that
//     hangs costs leadership, too.
//   - Start does not return a node whose own log names, above its floor, a
//     body that it has not got. Entries that a crash left without their bodies,
//     and that no server was told of, it cuts off.
//
// # What it assumes
//
//   - StreamLayer has authenticated the peer: node, cluster and incarnation.
//     Whoever can open a stream can move the floor.
//   - Bodies.Held says true only for what is on stable storage, and Bodies.Await
//     returns nil only then for what could be pinned.
//   - The FSM is total and fast; Snapshot is O(1).
//
// # What it refuses
//
//   - It never looks into a command: the name of a body travels in the
//     entry's Extensions. An Extensions that it cannot read is an error, never
//     an entry without a body.
//   - A request that no member sends (nil entries, gaps, configurations of
//     garbage, more octets or values than any request has) never reaches Raft,
//     which would believe it. A member that lies in good form is believed.
//   - It has no heartbeat fast path (hashicorp/raft#695: with it, logs can
//     diverge) and no pipelining (a follower's disk error would wedge it).
//   - It never bootstraps by itself.
package consensus
