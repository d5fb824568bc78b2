// Package sim runs whole clusters of three or five nodes, SMTP and delivery included, in
// simulated time: real nodes (cmd/holdfastd/node) over a network and disks in
// memory, a fake primary, a sender that behaves as one, seeded faults, and the
// ledger at the end. Virtual minutes take real seconds, so faults can be tried
// by the thousand.
//
// A seed decides the faults and the delays of the network; through the launcher in
// seeded, also how goroutines interleave in the first minutes. Behind that, and without
// it, a seed that failed may have to be run a few times to fail again.
package sim
