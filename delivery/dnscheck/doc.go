// Package dnscheck judges what other mail servers are told of a cluster: whether
// the DNS records, the MTA-STS policy and the certificates that they find bring a
// relay domain's mail to its nodes, and what would have to stand there.
//
// A Source looks things up, many at a time but never too many, each with a
// deadline; Judge makes findings of what it saw. Judge is pure: the same Facts give
// the same Report.
//
// It promises that an Error is something for which mail, or the mail of senders
// that hold to what the domain publishes, does not come to the cluster; that a
// Warning is not; and that what could not be looked up is never called fine. It
// sees what the host that it runs on sees: a firewall before that host, or a
// resolver with a view of its own, is in the picture.
//
// It changes nothing, sends no mail, and looks at the nodes only: of the primary
// it knows no more than the MX records tell.
package dnscheck
