// Package sim runs whole three-node clusters, SMTP and delivery included, in
// simulated time: real nodes (cmd/holdfastd/node) over a network and disks in
// memory, a fake primary, a sender that behaves as one, seeded faults, and the
// ledger at the end. Virtual minutes take real seconds, so faults can be tried
// by the thousand.
//
// A seed decides the faults and the delays of the network. It does not decide
// how goroutines interleave, so a seed that fails may have to be run a few
// times to fail again.
package sim
