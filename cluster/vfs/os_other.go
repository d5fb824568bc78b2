//go:build !linux

package vfs

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// datasync is the whole fsync where fdatasync is missing or not to be trusted.
func datasync(fd int) error { return unix.Fsync(fd) }

// writev writes the first piece, where many cannot be written at once.
func writev(fd int, pieces [][]byte, off int64) (int, error) { return unix.Pwrite(fd, pieces[0], off) }

// uncache does nothing where the page cache takes no advice.
func uncache(int, int64, int64) error { return nil }

// allocate has no room set aside.
func allocate(int, int64, int64) error { return errors.ErrUnsupported }

// openPast finds no way past the page cache.
func openPast(*os.File) (past *os.File, sector int) { return nil, 0 }
