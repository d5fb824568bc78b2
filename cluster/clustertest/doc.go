// Package clustertest has what tests need to run whole members in one process,
// inside testing/synctest: a network that can be cut and is slow, stores of
// Raft and of bodies that can crash, hang and fail.
//
// Everything here waits on channels and timers only, never on a lock for
// longer than a few instructions, so that a bubble's clock moves on. What is
// random comes from the seed that the test gives. Only what waits is driven by
// time: the order of goroutines that are ready at the same moment is Go's.
//
// A crash loses what a process had in memory and keeps what a durable
// operation had changed. Each durable operation takes time, then happens in
// one step, then takes time again before it answers: a crash may fall before
// it, or between it and its answer.
//
// Nothing here is linked into a released program.
package clustertest
