// Package vfs is the seam between what is stored and what it is stored on: the
// few file operations that bodies, the log and their segments need, with the
// durability of each one stated. OS is the host's file system; tests put one in
// its place that forgets what was not synced, and that fails on demand.
package vfs

import (
	"errors"
	"io"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrLocked: another process has the directory.
var ErrLocked = errors.New("directory is in use by another process")

// An FS is the part of a file system that segments need. Names are paths with
// the separators of the host. Errors must match io/fs.ErrNotExist and
// io/fs.ErrExist where they mean that.
//
// An FS is safe for concurrent use. Any operation may take long.
type FS interface {
	// MkdirAll makes dir and its missing parents, durably.
	MkdirAll(dir string) error
	// ReadDir returns the names in dir, sorted.
	ReadDir(dir string) ([]string, error)
	// Create makes a new file for reading and writing; it is an error if name
	// exists. The name is durable only after SyncDir, the content after Sync.
	Create(name string) (File, error)
	// Open opens an existing file for reading.
	Open(name string) (File, error)
	// OpenWrite opens an existing file for reading and writing.
	OpenWrite(name string) (File, error)
	// Rename gives a file another name in the same directory, replacing what
	// had that name. Durable only after SyncDir.
	Rename(from, to string) error
	// Remove unlinks a file; files open at the time stay readable. Durable only
	// after SyncDir.
	Remove(name string) error
	// SyncDir makes every earlier Create, Rename and Remove in dir durable.
	SyncDir(dir string) error
	// Lock takes an exclusive lock by the file of that name, which it makes if
	// it has to, until Close or the end of the process. ErrLocked if another
	// has it. It never waits.
	Lock(name string) (io.Closer, error)
}

// A File is an open file of an FS. It is safe for concurrent use.
type File interface {
	io.ReaderAt
	io.WriterAt
	// WritevAt writes the pieces one behind the other from off on, as one WriteAt
	// of all of them would, without copying them together. The error is not nil
	// if less than all was written. The pieces are the caller's again when it
	// returns.
	WritevAt(pieces [][]byte, off int64) (n int64, err error)
	// Sector returns how finely WriteSectors can write this file, in octets, a power
	// of two; 0 where it cannot.
	Sector() int
	// WriteSectors is a WritevAt past the host's page cache: the disk gets these
	// octets and no block around them, out of the memory in which they lie. The
	// offset, the length of each piece and where it lies in memory (see Aligned) are
	// multiples of Sector, and the file is as long as what is written already. It is
	// durable after Sync, like any write; who writes the same place in both ways does
	// one after the other.
	WriteSectors(pieces [][]byte, off int64) (n int64, err error)
	// Sync makes everything written to the file so far durable, its length
	// included (fdatasync).
	Sync() error
	// Forget says that n octets from off on will hardly be read soon, so that the
	// memory in which the host keeps a copy of them is better used for what is
	// written next. What is not synced yet is kept. It changes nothing that anyone
	// can read, and may do nothing.
	Forget(off, n int64)
	// Allocate has the file system set aside room for n octets from off on, so that it
	// need not look for room with each write. What is written there already stays, and
	// the file becomes so long, with zeros; its length is durable after Sync. An error
	// means that there may be no such room, and harms nothing.
	Allocate(off, n int64) error
	// Truncate sets the length, and gives back the room behind it. Durable only
	// after Sync.
	Truncate(size int64) error
	// Size returns the length.
	Size() (int64, error)
	Close() error
}

// alignment is what Aligned's memory begins at a multiple of: no less than the
// sectors of any disk.
const alignment = 4096

// Aligned returns memory of that length, n octets, from which WriteSectors can
// write: it begins at a multiple of any Sector.
func Aligned(n int) []byte {
	b := make([]byte, n+alignment-1)
	from := int(-address(b) % alignment)
	return b[from : from+n : from+n]
}

// IsAligned reports whether p begins at a multiple of n octets.
func IsAligned(p []byte, n int) bool { return address(p)%uintptr(n) == 0 }

func address(p []byte) uintptr { return uintptr(unsafe.Pointer(unsafe.SliceData(p))) }

// Unreadable reports whether err says that the disk cannot give back what was
// written at one place, so that other places may well be readable. Any other
// error of a read says something about the file or the process.
func Unreadable(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.EBADMSG)
}
