// Package clustertest is what the tests of the cluster's rooms share: hosts
// whose network can be cut, whose disks lose what was not synced and fail on
// demand, and whose processes can be killed, all inside one test process and,
// if wanted, inside a testing/synctest bubble.
//
// Nothing here is linked into a released program.
package clustertest
