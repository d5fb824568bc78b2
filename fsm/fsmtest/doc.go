// Package fsmtest holds what tests of the queue share: a script interpreter
// (Script), a naive twin of fsm.State (Twin), random histories of senders,
// holders and operators (History), and the invariants that every step must keep
// (Step).
//
// The twin and the invariants are written from docs/architecture.md, not from
// package fsm: they scan slices and keep no index, so that a defect is unlikely
// to stand in both. No production code imports this package.
package fsmtest
