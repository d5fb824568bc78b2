package clustertest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

var (
	// ErrKilled: the process that mounted the disk is dead, or its host is; this
	// is what its goroutines see from then on.
	ErrKilled = errors.New("process was killed")
)

// A Disk is the disk of one host, in memory. Like a real one it has two states:
// what processes see, and what would be found after a power failure. Sync and
// SyncDir bring the second up to the first; Crash throws the first away and
// decides, by the seed, for each write, truncation and change of a name that no
// sync covered, whether it got to the disk, did not, or did in part.
//
// A process sees the disk through Mount. Kill ends the process and leaves the
// host alive: what was written stays visible, synced or not. After Kill and
// Crash the old mount fails every operation, so that the goroutines of a dead
// process cannot touch the disk of its successor.
//
// Directories are durable when they are made. A write covers sectors of
// sectorBytes, each of which gets to the disk whole or not at all.
//
// A Disk is safe for concurrent use, and no lock is held while an injected delay
// passes, so that it works in synctest bubbles.
type Disk struct {
	mu      sync.Mutex
	random  *rand.Rand
	dirs    map[string]*directory
	mounted *mount
	faults  []*fault
	latency func(Op) time.Duration
	counts  map[Op]int
	tracing bool
	trace   []Event
}

// sectorBytes is the unit that a power failure does not tear.
const sectorBytes = 512

// NewDisk returns an empty disk. The same seed and the same operations give the
// same disk after each crash.
func NewDisk(seed uint64) *Disk {
	return &Disk{
		random: rand.New(rand.NewPCG(seed, 0x686f6c6466617374)),
		dirs:   make(map[string]*directory),
		counts: make(map[Op]int),
	}
}

// A directory is names, as processes see them and as they are on the disk.
type directory struct {
	names   map[string]*inode
	durable map[string]*inode
	pending []nameChange // durable + pending = names
}

// A nameChange is a Create (to), a Remove (from) or a Rename (both).
type nameChange struct {
	from, to string
	file     *inode
}

func (c nameChange) apply(names map[string]*inode) {
	if c.from != "" && names[c.from] == c.file {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = c.file
	}
}

// An inode is a file's content, as processes see it and as it is on the disk.
type inode struct {
	name    string // its latest, with the directory's
	content []byte
	durable []byte
	// pending are the changes that the next Sync makes durable. After a failed
	// Sync, content differs from durable with nothing pending, as with kernels
	// that mark pages clean when their write has failed.
	pending []change
}

// A change is a write, or a truncation if data is nil.
type change struct {
	offset int64
	data   []byte
}

func (c change) apply(to []byte) []byte {
	end := c.offset + int64(len(c.data))
	if c.data == nil && int64(len(to)) > c.offset {
		return to[:c.offset]
	}
	if n := end - int64(len(to)); n > 0 {
		to = append(to, make([]byte, n)...)
	}
	copy(to[c.offset:], c.data)
	return to
}

// A mount is one process's view of the disk. It implements vfs.FS.
type mount struct {
	disk  *Disk
	dead  bool
	locks map[string]bool
}

// Mount begins the life of a process that uses the disk. If another has not
// ended, it is killed.
func (d *Disk) Mount() vfs.FS {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.killLocked()
	d.mounted = &mount{disk: d, locks: make(map[string]bool)}
	return d.mounted
}

// Kill ends the process that has the disk mounted. What it wrote stays visible
// to the next one.
func (d *Disk) Kill() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.killLocked()
}

// Killed reports whether no process has the disk mounted: the last one was
// killed, or the power failed.
func (d *Disk) Killed() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mounted == nil
}

func (d *Disk) killLocked() {
	if d.mounted != nil {
		d.mounted.dead = true
	}
	d.mounted = nil
}

// do runs one operation: it is counted, it may be delayed or hit by a fault, and
// apply, under the lock, makes its effect. An operation whose process dies while
// it is delayed has no effect.
func (m *mount) do(op Op, name string, bytes int, apply func(hit *fault) error) error {
	return m.doTo(Event{Op: op, Name: name, Bytes: bytes}, nil, apply)
}

// doTo is do for an operation on an open file, which goes by the name that the
// file has now. What is traced is traced in the order of the effects.
func (m *mount) doTo(e Event, to *inode, apply func(hit *fault) error) error {
	d := m.disk
	d.mu.Lock()
	if to != nil {
		e.Name = to.name
	}
	if m.dead {
		d.mu.Unlock()
		return &fs.PathError{Op: e.Op.String(), Path: e.Name, Err: ErrKilled}
	}
	hit, delay := d.enterLocked(e.Op, e.Name)
	d.mu.Unlock()
	if delay > 0 {
		time.Sleep(delay)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if m.dead {
		return &fs.PathError{Op: e.Op.String(), Path: e.Name, Err: ErrKilled}
	}
	err := apply(hit)
	if hit != nil && hit.Crash {
		d.killLocked()
		err = ErrKilled
	}
	e.Failed = err != nil
	d.traceLocked(e)
	if err != nil {
		return &fs.PathError{Op: e.Op.String(), Path: e.Name, Err: err}
	}
	return nil
}

// dir returns the directory of name, and name's last element.
func (m *mount) dir(name string) (*directory, string, error) {
	dir, base := filepath.Split(filepath.Clean(name))
	d, ok := m.disk.dirs[filepath.Clean(dir)]
	if !ok {
		return nil, "", fs.ErrNotExist
	}
	return d, base, nil
}

func (m *mount) MkdirAll(name string) error {
	return m.do(OpMkdir, name, 0, func(hit *fault) error {
		if err := hit.err(); err != nil {
			return err
		}
		for p := filepath.Clean(name); ; p = filepath.Dir(p) {
			if m.disk.dirs[p] == nil {
				m.disk.dirs[p] = &directory{names: make(map[string]*inode), durable: make(map[string]*inode)}
			}
			if p == filepath.Dir(p) {
				return nil
			}
		}
	})
}

func (m *mount) ReadDir(name string) (names []string, err error) {
	err = m.do(OpReadDir, name, 0, func(hit *fault) error {
		if err := hit.err(); err != nil {
			return err
		}
		d, ok := m.disk.dirs[filepath.Clean(name)]
		if !ok {
			return fs.ErrNotExist
		}
		for n := range d.names {
			names = append(names, n)
		}
		slices.Sort(names)
		return nil
	})
	return names, err
}

// change makes a change of names that SyncDir will make durable.
func (d *directory) change(c nameChange) {
	c.apply(d.names)
	d.pending = append(d.pending, c)
}

func (m *mount) Create(name string) (vfs.File, error) {
	f := &file{mount: m, write: true, inode: &inode{name: name}}
	err := m.do(OpCreate, name, 0, func(hit *fault) error {
		if err := hit.err(); err != nil {
			return err
		}
		d, base, err := m.dir(name)
		if err != nil {
			return err
		}
		if d.names[base] != nil {
			return fs.ErrExist
		}
		d.change(nameChange{to: base, file: f.inode})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (m *mount) Open(name string) (vfs.File, error)      { return m.open(name, false) }
func (m *mount) OpenWrite(name string) (vfs.File, error) { return m.open(name, true) }

func (m *mount) open(name string, write bool) (vfs.File, error) {
	f := &file{mount: m, write: write}
	err := m.do(OpOpen, name, 0, func(hit *fault) error {
		if err := hit.err(); err != nil {
			return err
		}
		d, base, err := m.dir(name)
		if err != nil {
			return err
		}
		if f.inode = d.names[base]; f.inode == nil {
			return fs.ErrNotExist
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (m *mount) Rename(from, to string) error {
	return m.doTo(Event{Op: OpRename, Name: to, Was: from}, nil, func(hit *fault) error {
		if err := hit.err(); err != nil {
			return err
		}
		d, oldBase, err := m.dir(from)
		if err != nil {
			return err
		}
		other, newBase, err := m.dir(to)
		if err != nil {
			return err
		}
		f := d.names[oldBase]
		switch {
		case f == nil:
			return fs.ErrNotExist
		case d != other:
			return fmt.Errorf("to another directory: %w", errors.ErrUnsupported)
		}
		d.change(nameChange{from: oldBase, to: newBase, file: f})
		f.name = to
		return nil
	})
}

func (m *mount) Remove(name string) error {
	return m.do(OpRemove, name, 0, func(hit *fault) error {
		if err := hit.err(); err != nil {
			return err
		}
		d, base, err := m.dir(name)
		if err != nil {
			return err
		}
		f := d.names[base]
		if f == nil {
			return fs.ErrNotExist
		}
		d.change(nameChange{from: base, file: f})
		return nil
	})
}

func (m *mount) SyncDir(name string) error {
	return m.do(OpSyncDir, name, 0, func(hit *fault) error {
		d, ok := m.disk.dirs[filepath.Clean(name)]
		if !ok {
			return fs.ErrNotExist
		}
		if err := hit.err(); err != nil {
			return err
		}
		if hit.crashes() {
			return nil // the power fails before anything of it is done
		}
		for _, c := range d.pending {
			c.apply(d.durable)
		}
		d.pending = nil
		return nil
	})
}

func (m *mount) Lock(name string) (io.Closer, error) {
	err := m.do(OpLock, name, 0, func(hit *fault) error {
		if err := hit.err(); err != nil {
			return err
		}
		if m.locks[name] {
			return vfs.ErrLocked
		}
		m.locks[name] = true
		return nil
	})
	if err != nil {
		return nil, err
	}
	return &diskLock{mount: m, name: name}, nil
}

// A diskLock ends with the mount, whose map of locks goes with it.
type diskLock struct {
	mount *mount
	name  string
}

func (l *diskLock) Close() error {
	l.mount.disk.mu.Lock()
	defer l.mount.disk.mu.Unlock()
	delete(l.mount.locks, l.name)
	return nil
}
