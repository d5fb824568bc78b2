package vfs

import "golang.org/x/sys/unix"

// datasync writes a file's data, and the metadata that is needed to read it,
// its length above all. Times are left out, which saves a journal commit.
func datasync(fd int) error { return unix.Fdatasync(fd) }

// writevMax is how many pieces one system call takes (IOV_MAX).
const writevMax = 1024

// writev is one pwritev, which may write less than all.
func writev(fd int, pieces [][]byte, off int64) (int, error) {
	return unix.Pwritev(fd, pieces[:min(len(pieces), writevMax)], off)
}

// uncache takes the clean pages of a range out of the page cache.
func uncache(fd int, off, n int64) error { return unix.Fadvise(fd, off, n, unix.FADV_DONTNEED) }
