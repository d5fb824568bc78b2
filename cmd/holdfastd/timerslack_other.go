//go:build !linux

package main

// coarsenTimers does nothing where threads have no timer slack.
func coarsenTimers() error { return nil }
