// Package fabric joins network namespaces by a network in user space: each host
// has one interface, and every packet between two hosts goes through this
// process, which decides what becomes of it. So a run can cut each direction
// between two addresses, lose a share of the packets, delay them, overtake and
// double them, without the kernel's netem or packet filter.
//
// What is cut vanishes without a word, as behind a broken switch: a sender sees
// time pass and nothing else. The first packet of a connection to an address that
// no host has is counted, since a node has no business there.
//
// The decisions come from a seed; which packet meets which decision depends on
// the order in which packets come.
package fabric
