package segment

import (
	"errors"
	"io/fs"
	"path/filepath"
	"sync"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// prewriteBytes is one step of Prewrite: short enough that a Sync beside it
// hardly notices.
const prewriteBytes = 1 << 20

// prewritten is what such a step writes.
var prewritten [prewriteBytes]byte

// A pool keeps files that have their length and their blocks already, so that a
// sync of what is written into them need not make the file system's own books
// durable: that halves what a small batch costs. What is in them does not
// matter. They are called 00000001.free and up.
//
// An error here never fails the set, and a failed sync of a file that Prewrite
// writes does not latch: nothing in that file was ever promised to anyone, and
// the file is thrown away. When a file becomes a segment, its head is written
// and synced anew, and each batch in it as in any other; an error of those does
// latch.
type pool struct {
	set *Set
	max int

	mu    sync.Mutex
	ready []poolFile // of full length
	short []poolFile // to be made longer
	// busy is the file that Prewrite is at. It is counted, and is nobody else's.
	busy *poolFile
	file vfs.File // busy's
	// offered counts the segments that are on their way here.
	offered int
	last    uint64 // the greatest number in a name
	// broken: Prewrite has met an error. It does no more in this process; freed
	// segments still come here.
	broken bool
}

type poolFile struct {
	name string
	size int64
}

func newPool(s *Set, limit int) pool { return pool{set: s, max: max(0, limit)} }

func (p *pool) nameLocked() string {
	p.last++
	return filepath.Join(p.set.dir, numbered(p.last, poolSuffix))
}

func (p *pool) lenLocked() int {
	n := len(p.ready) + len(p.short) + p.offered
	if p.busy != nil {
		n++
	}
	return n
}

func (p *pool) stats() (files int, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.ready {
		bytes += f.size
	}
	for _, f := range p.short {
		bytes += f.size
	}
	if p.busy != nil {
		bytes += p.busy.size
	}
	return p.lenLocked(), bytes
}

// adopt takes over what an earlier process left in the directory, and removes
// what is too much. Failing to is no harm: the next one tries again.
func (p *pool) adopt(numbers []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range numbers {
		p.last = max(p.last, n)
		name := filepath.Join(p.set.dir, numbered(n, poolSuffix))
		if size, err := p.measure(name); err != nil || !p.addLocked(poolFile{name, size}) {
			if err := p.set.fs.Remove(name); err != nil {
				p.set.log.Warn("cannot remove a file of the pool", "file", name, "error", err)
			}
		}
	}
}

func (p *pool) measure(name string) (int64, error) {
	f, err := p.set.fs.Open(name)
	if err != nil {
		return 0, err
	}
	size, err := f.Size()
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return size, err
}

// addLocked puts f in the pool, unless that is full or f too long to be kept.
func (p *pool) addLocked(f poolFile) bool {
	if p.lenLocked() >= p.max || f.size > p.set.limit+trimBytes {
		return false
	}
	if f.size >= p.set.limit {
		p.ready = append(p.ready, f)
	} else {
		p.short = append(p.short, f)
	}
	return true
}

// offer returns the name that a segment of that length is to get when it
// becomes a file of the pool, or "" if the pool does not want it. The room is
// kept until add.
func (p *pool) offer(size int64) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.lenLocked() >= p.max || size > p.set.limit+trimBytes {
		return ""
	}
	p.offered++
	return p.nameLocked()
}

// add puts in what was offered.
func (p *pool) add(f poolFile) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.offered--
	p.addLocked(f)
}

// take returns a file for a new segment, open, with its name and its length: one
// of the pool, or a new one.
func (p *pool) take() (f vfs.File, name string, size int64, err error) {
	p.mu.Lock()
	var one poolFile
	if n := len(p.ready); n > 0 {
		one = p.ready[n-1]
		p.ready = p.ready[:n-1]
	}
	fresh := p.nameLocked()
	p.mu.Unlock()
	if one.name != "" {
		f, err := p.set.fs.OpenWrite(one.name)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return f, one.name, one.size, err
		}
	}
	f, err = p.set.fs.Create(fresh)
	return f, fresh, 0, err
}

// Prewrite does one step towards a full pool, a write and a sync of one
// mebibyte, and reports whether there is more to do. It may run beside the
// writer; call it while there is nothing to write, and never twice at once.
func (s *Set) Prewrite() (more bool) {
	if s.ready() != nil {
		return false
	}
	p := &s.pool
	if err := p.choose(); err != nil {
		p.giveUp(err)
		return false
	}
	if p.busy == nil {
		return false
	}
	if err := p.step(); err != nil {
		p.giveUp(err)
		return false
	}
	return p.wants()
}

// PrewriteWanted reports whether Prewrite would do anything.
func (s *Set) PrewriteWanted() bool { return s.ready() == nil && s.pool.wants() }

// Shed removes one file of the pool, and reports whether there was one. It may run beside
// the writer, and never beside Prewrite. The room counts as free when it returns.
func (s *Set) Shed() bool {
	p := &s.pool
	p.mu.Lock()
	var one poolFile
	switch {
	case p.busy != nil:
		_ = p.file.Close()
		one = *p.busy
		p.busy, p.file = nil, nil
	case len(p.short) > 0:
		one, p.short = p.short[0], p.short[1:]
	case len(p.ready) > 0:
		one, p.ready = p.ready[0], p.ready[1:]
	}
	p.mu.Unlock()
	if one.name == "" {
		return false
	}
	if err := s.fs.Remove(one.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		s.log.Warn("cannot remove a file of the pool", "file", one.name, "error", err)
	}
	return true
}

func (p *pool) wants() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.broken && (p.busy != nil || len(p.short) > 0 || p.lenLocked() < p.max)
}

// choose opens the file that the next step is for: one that is short, or a new
// one.
func (p *pool) choose() (err error) {
	p.mu.Lock()
	if p.broken || p.busy != nil || len(p.short) == 0 && p.lenLocked() >= p.max {
		p.mu.Unlock()
		return nil
	}
	var one poolFile
	if n := len(p.short); n > 0 {
		one = p.short[n-1]
		p.short = p.short[:n-1]
	} else {
		one.name = p.nameLocked()
	}
	fresh := one.size == 0
	p.busy = &one
	p.mu.Unlock()
	if fresh {
		p.file, err = p.set.fs.Create(one.name)
		if errors.Is(err, fs.ErrExist) { // an empty one, left by a crash
			p.file, err = p.set.fs.OpenWrite(one.name)
		}
	} else {
		p.file, err = p.set.fs.OpenWrite(one.name)
	}
	return err
}

// step makes the chosen file longer by one step of zeros.
func (p *pool) step() error {
	n := min(prewriteBytes, p.set.limit-p.busy.size)
	if err := writeAt(p.file, prewritten[:n], p.busy.size); err != nil {
		return err
	}
	if err := p.file.Sync(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy.size += n
	if p.busy.size < p.set.limit {
		return nil
	}
	err := p.file.Close()
	if err == nil {
		p.ready = append(p.ready, *p.busy)
		p.busy, p.file = nil, nil
	}
	return err
}

// giveUp throws the chosen file away, and prewrites no more.
func (p *pool) giveUp(cause error) {
	p.mu.Lock()
	one, f := p.busy, p.file
	p.busy, p.file, p.broken = nil, nil, true
	p.mu.Unlock()
	p.set.log.Warn("segments are not written ahead any more", "dir", p.set.dir, "error", cause)
	if f != nil {
		_ = f.Close()
	}
	if one != nil {
		if err := p.set.fs.Remove(one.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			p.set.log.Warn("cannot remove a file of the pool", "file", one.name, "error", err)
		}
	}
}

func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.file != nil {
		_ = p.file.Close()
		p.file = nil
	}
}
