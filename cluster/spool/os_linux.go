package spool

import "golang.org/x/sys/unix"

// datasync writes a file's data, and the metadata that is needed to read it,
// its length above all. Times are left out, which saves a journal commit.
func datasync(fd int) error { return unix.Fdatasync(fd) }
