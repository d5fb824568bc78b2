// Package cluster is one member of the cluster: it takes messages in, has them
// copied and committed, hands out and ends leases while it leads, and frees the
// bodies of messages that are finished.
//
// It joins the spool (bodies on disk), consensus (Raft under the append rule),
// the peers (push, fetch, forwarded proposals) and the replicated queue of
// package fsm. It promises that Submit returns nil only when the message,
// envelope and body, is on stable storage at a majority of the voters, and that
// Submit says ErrNotAccepted only when the message was certainly never appended
// to the log. It assumes that a transport has verified who the peers are. It
// knows neither SMTP nor next hops.
package cluster
