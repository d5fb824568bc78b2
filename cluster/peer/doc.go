// Package peer is what the nodes of a cluster ask of one another apart from
// Raft: to store a body, to send one, to propose a command as leader, to lease
// messages, and how they are. It is gRPC over connections of cluster/transport;
// proto/peerpb is the reference of the wire.
//
// A Server answers, for the node that the caller's certificate names, out of a
// Backend. Peers asks. Both are safe for concurrent use, and end on Close.
//
// It promises that
//   - a Push ends with nil only when the peer has taken, or stored, the body;
//   - a body that arrives has the size and digest of its reference, in both
//     directions. Of a pushed one the digest is the sender's word, and that the
//     octets are those which he hashed is known by their CRC32C. Nodes believe one
//     another (each could propose what it likes); what is looked for is damage, in
//     memory too;
//   - ErrNotAppended means that the command was certainly not appended: this
//     node never sent it, or the leader said so. Every other failure of a
//     proposal is ErrOutcomeUnknown;
//   - a slow or dead peer costs the callers that wait for it nothing but their
//     own wait, and other peers' traffic nothing at all. What lies in line for
//     one peer is bounded by Config.LineBytesMax.
//
// It assumes that a body handed to Push is not changed any more, and that the
// Backend's StoreBodies returns after fsync, which ends what a body may cost here
// in memory. An acknowledgement is a hint: the receiver may die, or reclaim a body
// that no entry names. What counts is the
// append rule's own check (docs/architecture.md).
//
// It refuses connections that are not from cluster/transport, and requests over
// its limits.
package peer
