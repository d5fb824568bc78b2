// Package sender is a sending mail server for tests and measurements. It gives
// letters to several equal targets over a fixed number of sessions, and does
// what a real one does about trouble: after a 4yz, a closed connection, a
// refused connection or a 421 banner it goes to the next target with the same
// octets, and backs off when all targets have failed.
//
// It promises that no final dot is written before its intent is on record, and
// that each attempt's outcome is recorded once it is known: accepted, refused,
// or without a reply. It gives a letter up only at a 5yz, at a deadline, or
// with its context; what was given up is counted.
//
// Time comes from the time package and connections from Options.Dial, so that
// it runs inside a testing/synctest bubble; no goroutine is left after Run.
package sender
