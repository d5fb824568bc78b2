// Package transport is the one TLS port between the nodes of a cluster.
//
// It promises that whoever is at the other end of a connection it hands out is
// a node of this cluster, with the name that PeerName returns: TLS 1.3, both
// certificates signed by the cluster's own CA, and the certificate's only URI
// is holdfast://<cluster>/node/<name>. ALPN sorts connections into Raft and
// gRPC; one never reaches the other's decoder. A Raft connection is handed out
// only after a hello frame in which both sides agreed on the server ids, so a
// node that was set up anew under an old name is not taken for its former self.
//
// It assumes that the CA's key is kept apart from the nodes, and that the
// clocks of the nodes are right to within certificateBackdate.
//
// It refuses everything else without a word to the stranger: what is not TLS,
// other CAs, other clusters, other roles, a handshake that takes longer than
// handshakeMax, and more connections than its limits. Refusals are counted and
// logged now and then, so that a port scan does not fill the log.
//
// Certificates are made here too (CreateCA, IssueNode), so that what is issued
// and what is checked cannot drift apart. There is no revocation list: a node that
// was removed can connect until its certificate expires. Raft asks it for no vote
// and takes none of it; who does not trust its host any more makes another CA.
package transport
