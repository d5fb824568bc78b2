//go:build e2e

// Package e2e puts a cluster of the real binaries between real mail servers: a
// Postfix with its own queue sends, a Postfix with its own queue is the primary,
// and a DNS server lists the primary at preference 10 and the three nodes at
// equal 20, as the operator of a backup MX would. Other mail servers, as primaries,
// show that mail is kept as it was signed; each runs in a tree of its own, since
// their packages cannot be installed together.
//
// The tests need root, Linux, the postfix package, and what .ci/mailservers
// fetches, and fail without them: they are never skipped. They run in network,
// mount and process namespaces of their own, so that port 25 and /etc/resolv.conf
// are theirs, nothing on the host is touched, and no process outlives them.
package e2e
