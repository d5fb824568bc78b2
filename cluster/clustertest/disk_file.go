package clustertest

import (
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A file is an open file of a Disk.
type file struct {
	mount  *mount
	write  bool
	inode  *inode
	closed bool
}

func (f *file) do(op Op, bytes int, apply func(hit *fault) error) error {
	return f.mount.doTo(Event{Op: op, Bytes: bytes}, f.inode, func(hit *fault) error {
		if f.closed {
			return fs.ErrClosed
		}
		return apply(hit)
	})
}

func (f *file) ReadAt(p []byte, off int64) (n int, err error) {
	end := false
	err = f.do(OpRead, len(p), func(hit *fault) error {
		if err := hit.err(); err != nil {
			return err
		}
		if off < int64(len(f.inode.content)) {
			n = copy(p, f.inode.content[off:])
		}
		end = n < len(p)
		return nil
	})
	if err == nil && end {
		err = io.EOF
	}
	return n, err
}

func (f *file) WriteAt(p []byte, off int64) (n int, err error) {
	n64, err := f.WritevAt([][]byte{p}, off)
	return int(n64), err
}

// Forget does nothing: a page cache shows in no content.
func (f *file) Forget(int64, int64) {}

// Allocate makes the file longer, as a write of the last one of those octets would.
func (f *file) Allocate(off, n int64) error {
	return f.do(OpTruncate, 0, func(hit *fault) error {
		if err := hit.err(); err != nil {
			return err
		}
		if !f.write {
			return fs.ErrPermission
		}
		if end := off + n; end > int64(len(f.inode.content)) {
			f.inode.change(change{offset: end - 1, data: []byte{0}})
		}
		return nil
	})
}

// Sector is the unit that a power failure does not tear.
func (f *file) Sector() int { return sectorBytes }

// WriteSectors is a write like any other. It panics where a host would refuse, or
// make the file longer.
func (f *file) WriteSectors(pieces [][]byte, off int64) (int64, error) {
	return f.put(slices.Concat(pieces...), off, func() {
		size, end := int64(len(f.inode.content)), off
		for _, p := range pieces {
			end += int64(len(p))
			if len(p)%sectorBytes != 0 || !vfs.IsAligned(p, sectorBytes) {
				panic(fmt.Sprintf("%d octets at %d of %d are no sectors", len(p), off, size))
			}
		}
		if off%sectorBytes != 0 || end > size {
			panic(fmt.Sprintf("%d octets at %d of %d are no sectors", end-off, off, size))
		}
	})
}

// WritevAt is one operation: a power failure tears it as it tears one long
// write.
func (f *file) WritevAt(pieces [][]byte, off int64) (written int64, err error) {
	return f.put(slices.Concat(pieces...), off, func() {}) // the disk's own copy
}

// put writes p, which is the disk's from now on, if the process lives to check it.
func (f *file) put(p []byte, off int64, check func()) (written int64, err error) {
	n := 0
	err = f.do(OpWrite, len(p), func(hit *fault) error {
		check()
		if !f.write {
			return fs.ErrPermission
		}
		n = len(p)
		if hit != nil && (hit.Short || hit.Err != nil) {
			if n = 0; hit.Short {
				n = len(p) / 2
			}
		}
		if n > 0 {
			f.inode.change(change{offset: off, data: p[:n]})
		}
		if err := hit.err(); err != nil {
			return err
		}
		if n < len(p) {
			return io.ErrShortWrite
		}
		return nil
	})
	if err != nil && n == len(p) {
		n = 0
	}
	return int64(n), err
}

func (f *file) Truncate(size int64) error {
	return f.do(OpTruncate, 0, func(hit *fault) error {
		if err := hit.err(); err != nil {
			return err
		}
		if !f.write {
			return fs.ErrPermission
		}
		f.inode.change(change{offset: size})
		return nil
	})
}

func (f *file) Sync() error {
	return f.do(OpSync, 0, func(hit *fault) error {
		if hit.crashes() {
			return nil // the power fails before it is done: Crash decides what got there
		}
		err := hit.err()
		for _, c := range f.inode.pending {
			// A sync that fails has written some of it, and the kernel forgets
			// that it owes the rest.
			if err == nil || f.mount.disk.random.IntN(2) == 0 {
				f.inode.durable = c.apply(f.inode.durable)
			}
		}
		f.inode.pending = nil
		return err
	})
}

func (f *file) Size() (n int64, err error) {
	err = f.do(OpSize, 0, func(hit *fault) error {
		n = int64(len(f.inode.content))
		return hit.err()
	})
	return n, err
}

// Close works on a dead mount too: a descriptor ends with its process.
func (f *file) Close() error {
	f.mount.disk.mu.Lock()
	defer f.mount.disk.mu.Unlock()
	if f.closed {
		return fs.ErrClosed
	}
	f.closed = true
	return nil
}

func (i *inode) change(c change) {
	i.content = c.apply(i.content)
	i.pending = append(i.pending, c)
}
