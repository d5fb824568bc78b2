package spool

import (
	"errors"
	"io"
)

// ErrLocked: another process has the directory.
var ErrLocked = errors.New("directory is in use by another process")

// An FS is the part of a file system that a spool needs. Names are paths with
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

// A File is an open file of an FS.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Sync makes everything written to the file so far durable, its length
	// included (fdatasync).
	Sync() error
	// Truncate sets the length. Durable only after Sync.
	Truncate(size int64) error
	// Size returns the length.
	Size() (int64, error)
	Close() error
}
