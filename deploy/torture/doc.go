// Command torture runs the real binaries through faults of the real kind and
// judges what became of the mail.
//
// Three nodes, or five, run in network namespaces, each with a data directory on a small
// ext4 file system of its own. Senders record in a ledger on stable storage what
// they are about to send, before the final dot, and what came of it; a primary that
// is played here records what arrived in another. Meanwhile nodes are killed and
// stopped, links cut and disks broken, as a seed decides (package schedule). At the
// end everything is mended, the queue drains, and the ledgers are compared.
//
// One run in five has a Postfix, an Exim or an OpenSMTPD as its primary, or as one of
// its senders (package mailserver): what counts then is what that one wrote to its
// maildir, or what its log says was sent.
//
// A run closes with the line
//
//	acked=N lost=0 altered=0 relayed=0 duplicates=D bound=B
//
// where N counts pairs of a message and a recipient that got a 250, D the copies
// beyond the first, and B those that what happened excuses. Exit status: 0 all
// promises held; 1 one did not, or the run could not be finished; 64 wrong usage;
// 130 interrupted. What is judged, by the names of docs/guarantees.md:
//
//	L1  nothing that got a 250 is lost: it arrives, or its sender is told that the
//	    primary refused it, or it is held, where nobody is to be told
//	L2  what arrives is, behind trace fields, the octets that were sent, with the NOTIFY
//	    (RFC 3461) that it was sent with
//	L3  no pair has more copies than what happened to it excuses, and the nodes counted
//	    a doubt for each final dot that brought a message again
//	L4  nothing goes to strangers: no recipient that nobody sent to, no connection
//	    to an address that is not the run's, no relaying for who asks
//	L5  what got a 4yz or 5yz is never delivered, and every command and every final dot
//	    is answered within the patience of a node and five seconds, or its connection
//	    closed
//	L6  one leader per term, and equal queues at the end
//	L7  no file descriptors are left open when the queue has drained
//	L8  250s are given again within 30 s where a majority is healthy, every node
//	    comes back, and the queue drains: nothing is held, and no domain stopped, for
//	    which the primary gave no reason
//	L9  who is to be told of a recipient that the primary refuses for good is told,
//	    once, and nobody else: not of mail from <>, of lists, or automatic mail, not
//	    who said NOTIFY=NEVER, nor where the relay domain's policy is another; and of
//	    what arrives nobody is told that it failed, and none is held
//
// Each fault is looked at while it lasts, and a run says which kinds did nothing that
// could be seen.
//
// It needs root and Linux with TUN; what a kind of fault needs besides is said, and
// the kind left out, where the machine lacks it. Namespaces, mounts, loop devices
// and processes end with it, however it ends.
package main
