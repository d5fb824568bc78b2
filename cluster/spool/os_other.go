//go:build !linux

package spool

import "golang.org/x/sys/unix"

// datasync is the whole fsync where fdatasync is missing or not to be trusted.
func datasync(fd int) error { return unix.Fsync(fd) }
