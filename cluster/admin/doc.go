// Package admin is the administrator's gRPC service of one node.
//
// It answers every call on every node: reads from what this node has applied,
// with how old that may be; changes by a proposal, here or at the leader. Each
// change leaves one audit line in the log with who asked for it. Proto package
// holdfast.admin.v1 is the reference of the calls.
//
// It promises that a request, however malformed, panics nothing and holds no
// lock; that a change is proposed at most once per call; and that an error says
// whether the change can still take effect. It assumes that whoever may open
// the unix socket is allowed everything: the socket is for root and the
// daemon's own user, which Listen and the handshake both enforce. It refuses to
// show the content of messages.
package admin
