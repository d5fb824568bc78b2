package node

import (
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// A diskWatch is a file system that knows how long its running writes have been
// running. A disk that hangs answers nothing: whoever waits for it cannot tell.
type diskWatch struct {
	vfs.FS

	mu sync.Mutex
	// running holds when each write began that has not come back, in the order
	// of their numbers.
	running map[uint64]time.Time
	number  uint64
}

func newDiskWatch(fs vfs.FS) *diskWatch {
	return &diskWatch{FS: fs, running: make(map[uint64]time.Time)}
}

// stalled reports whether a write has been running for longer than limit.
func (w *diskWatch) stalled(limit time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, began := range w.running {
		if time.Since(began) > limit {
			return true
		}
	}
	return false
}

// watch counts a write in; the function that it returns counts it out.
func (w *diskWatch) watch() (end func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.number++
	number := w.number
	w.running[number] = time.Now()
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.running, number)
	}
}

func (w *diskWatch) Create(name string) (vfs.File, error) {
	defer w.watch()()
	f, err := w.FS.Create(name)
	return w.file(f), err
}

func (w *diskWatch) OpenWrite(name string) (vfs.File, error) {
	f, err := w.FS.OpenWrite(name)
	return w.file(f), err
}

func (w *diskWatch) Rename(from, to string) error {
	defer w.watch()()
	return w.FS.Rename(from, to)
}

func (w *diskWatch) Remove(name string) error {
	defer w.watch()()
	return w.FS.Remove(name)
}

func (w *diskWatch) SyncDir(dir string) error {
	defer w.watch()()
	return w.FS.SyncDir(dir)
}

func (w *diskWatch) file(f vfs.File) vfs.File {
	if f == nil {
		return nil
	}
	return watchedFile{f, w}
}

// A watchedFile is a file that is written to.
type watchedFile struct {
	vfs.File
	watch *diskWatch
}

func (f watchedFile) WriteAt(p []byte, offset int64) (int, error) {
	defer f.watch.watch()()
	return f.File.WriteAt(p, offset)
}

func (f watchedFile) WritevAt(pieces [][]byte, offset int64) (int64, error) {
	defer f.watch.watch()()
	return f.File.WritevAt(pieces, offset)
}

func (f watchedFile) WriteSectors(pieces [][]byte, offset int64) (int64, error) {
	defer f.watch.watch()()
	return f.File.WriteSectors(pieces, offset)
}

func (f watchedFile) Allocate(offset, n int64) error {
	defer f.watch.watch()()
	return f.File.Allocate(offset, n)
}

func (f watchedFile) Sync() error {
	defer f.watch.watch()()
	return f.File.Sync()
}

func (f watchedFile) Truncate(size int64) error {
	defer f.watch.watch()()
	return f.File.Truncate(size)
}
