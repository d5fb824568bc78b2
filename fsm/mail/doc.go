// Package mail is the vocabulary that every room of Holdfast shares: queue
// ids, mailboxes, envelopes, bodies and replies, each with its own type.
//
// It is pure: nothing here reads a clock, draws a random number, does I/O or
// starts a goroutine. Values are safe for concurrent reading; none of the
// types is safe for concurrent change.
//
// Parsing is strict. What this package lets through is safe to write on an
// SMTP command line as it stands: no control characters, quoted local parts
// quoted, no source route, no routing characters that a primary could take
// for an order to relay.
package mail
