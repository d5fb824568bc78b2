package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// The modes of what is made: mail is for the daemon's own eyes.
const (
	dirMode  = 0o700
	fileMode = 0o600
)

// OS returns the file system of the host.
func OS() FS { return osFS{} }

type osFS struct{}

func (osFS) MkdirAll(dir string) error {
	// Each parent of what is missing must be synced after its new child exists.
	// That of dir itself in any case: whoever made it may have been killed first.
	parents := []string{filepath.Dir(filepath.Clean(dir))}
	for d := filepath.Clean(dir); ; d = filepath.Dir(d) {
		if _, err := os.Stat(d); err == nil || d == filepath.Dir(d) {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		parents = append(parents, filepath.Dir(d))
	}
	if err := os.MkdirAll(dir, dirMode); err != nil {
		return err
	}
	for _, p := range parents {
		if err := (osFS{}).SyncDir(p); err != nil {
			return err
		}
	}
	return nil
}

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) Create(name string) (File, error) {
	return open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}

func (osFS) Open(name string) (File, error) { return open(name, os.O_RDONLY) }

func (osFS) OpenWrite(name string) (File, error) { return open(name, os.O_RDWR) }

func open(name string, flag int) (File, error) {
	f, err := os.OpenFile(name, flag, fileMode)
	if err != nil {
		return nil, err
	}
	return &osFile{File: f}, nil
}

func (osFS) Rename(from, to string) error { return os.Rename(from, to) }

func (osFS) Remove(name string) error { return os.Remove(name) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return nil, err
	}
	err = onDescriptor(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err == nil {
		return f, nil
	}
	_ = f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	return nil, fmt.Errorf("lock %s: %w", name, err)
}

type osFile struct {
	*os.File
	past past
}

// A past is the way past the page cache for one file: another descriptor, since
// the one that we have is for readers, too. It is opened when it is first asked
// for.
type past struct {
	once   sync.Once
	file   *os.File // nil where there is no such way
	sector int
}

func (f *osFile) Sector() int {
	f.past.once.Do(func() { f.past.file, f.past.sector = openPast(f.File) })
	return f.past.sector
}

func (f *osFile) WriteSectors(pieces [][]byte, off int64) (int64, error) {
	if f.Sector() == 0 {
		return 0, &fs.PathError{Op: "write sectors", Path: f.Name(), Err: errors.ErrUnsupported}
	}
	n, err := writePieces(f.past.file, pieces, off)
	if n == 0 && errors.Is(err, unix.EINVAL) {
		// The kernel would not even try. Through the page cache it is as durable.
		return f.WritevAt(pieces, off)
	}
	return n, err
}

func (f *osFile) Close() error {
	f.past.once.Do(func() {}) // from now on there is none
	err := f.File.Close()
	if f.past.file != nil {
		err = errors.Join(err, f.past.file.Close())
	}
	return err
}

func (f *osFile) Sync() error {
	if err := onDescriptor(f.File, datasync); err != nil {
		return &fs.PathError{Op: "fdatasync", Path: f.Name(), Err: err}
	}
	return nil
}

func (f *osFile) WritevAt(pieces [][]byte, off int64) (int64, error) {
	return writePieces(f.File, pieces, off)
}

// writePieces writes the pieces one behind the other.
func writePieces(f *os.File, pieces [][]byte, off int64) (n int64, err error) {
	rest := make([][]byte, 0, len(pieces))
	for _, p := range pieces {
		if len(p) > 0 {
			rest = append(rest, p)
		}
	}
	for len(rest) > 0 {
		var once int
		err := onDescriptor(f, func(fd int) (err error) {
			once, err = writev(fd, rest, off+n)
			return err
		})
		if err == nil && once <= 0 {
			err = io.ErrShortWrite
		}
		if err != nil {
			return n, &fs.PathError{Op: "pwritev", Path: f.Name(), Err: err}
		}
		n += int64(once)
		for once > 0 && once >= len(rest[0]) {
			once -= len(rest[0])
			rest = rest[1:]
		}
		if once > 0 {
			rest[0] = rest[0][once:]
		}
	}
	return n, nil
}

func (f *osFile) Forget(off, n int64) {
	_ = onDescriptor(f.File, func(fd int) error { return uncache(fd, off, n) })
}

func (f *osFile) Allocate(off, n int64) error {
	if err := onDescriptor(f.File, func(fd int) error { return allocate(fd, off, n) }); err != nil {
		return &fs.PathError{Op: "allocate", Path: f.Name(), Err: err}
	}
	return nil
}

func (f *osFile) Size() (int64, error) {
	info, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// onDescriptor runs a system call on f's descriptor, again after a signal. The
// descriptor cannot be closed and reused in the meantime.
func onDescriptor(f *os.File, call func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	if err := raw.Control(func(fd uintptr) {
		for {
			if result = call(int(fd)); result != unix.EINTR {
				return
			}
		}
	}); err != nil {
		return fs.ErrClosed // nothing else keeps a descriptor back
	}
	return result
}
