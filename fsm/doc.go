// Package fsm is the replicated queue as a pure state machine.
//
// A State is changed by nothing but Apply, which is given an entry's index and
// the decoded Command and returns a Result for the proposer and the Effects for
// the shell. There is no clock, I/O, goroutine, lock, randomness or logging
// here, and no map order can be seen: the same commands give the same State,
// byte for byte, on every node. Apply is total: no command panics it.
//
// A State is not safe for concurrent use. Snapshot returns, in constant time, a
// copy that may be read while the original goes on.
package fsm
