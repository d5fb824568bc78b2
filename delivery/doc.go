// Package delivery turns the leases that this node holds into attempts, and
// attempts into outcomes.
//
// An Agent keeps one loop per relay domain. While the domain's next hop is neither
// down nor refusing and mail is due, it connects, asks for a lease, delivers the
// messages one after the other and reports what became of them. Otherwise it takes its
// turn at probing it.
//
// It promises, whatever the next hop or the cluster does: the final dot of a
// message is sent only while this node has the right to act, after a committed
// renewal under the lease's token named the message as begun, and less than
// half a lease after the last committed renewal was sent. A message is reported
// once per lease, the same report again until it is answered, and is not
// touched under that lease afterwards. What was sent of a message behind the dot
// of another, its MAIL, RCPT and DATA, gives it no right and no outcome: where the
// dot may not follow, the connection is closed. Content that cannot be read to
// its end is never ended by a dot. What a next hop says before MAIL, or to MAIL,
// is never held against a message; a recipient fails by nothing but a 5yz to it, to
// DATA or to the dot, which is not about the host or the way we speak. Mail of a
// domain whose TLS policy demands TLS never goes out in the clear.
//
// It assumes that Config.Boot goes on while the host sleeps (CLOCK_BOOTTIME),
// and that a Queue method returns nil only for what is committed.
//
// It refuses to decide what may be delivered: that is the replicated queue's
// business, and a lease is its answer. docs/architecture.md, Leases.
package delivery
