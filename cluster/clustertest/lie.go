package clustertest

import "github.com/holdfast-mx/holdfast/cluster/vfs"

// A Lie is a file system that says it has synced what it has not: a negative
// control for tests of crashes, which must find whatever is built on it.
type Lie struct {
	Files bool // a file's sync does nothing
	Dirs  bool // a directory's sync does nothing
	Late  bool // a file's sync is done before the next operation, after its answer
}

// Wrap returns fs with that lie.
func (l Lie) Wrap(fs vfs.FS) vfs.FS { return &lyingFS{FS: fs, lie: l} }

// A lyingFS is for one goroutine at a time.
type lyingFS struct {
	vfs.FS
	lie Lie
	due []vfs.File // synced too late
}

func (l *lyingFS) settle() {
	for _, f := range l.due {
		_ = f.Sync()
	}
	l.due = nil
}

func (l *lyingFS) SyncDir(dir string) error {
	l.settle()
	if l.lie.Dirs {
		return nil
	}
	return l.FS.SyncDir(dir)
}

func (l *lyingFS) Rename(from, to string) error {
	l.settle()
	return l.FS.Rename(from, to)
}

func (l *lyingFS) Remove(name string) error {
	l.settle()
	return l.FS.Remove(name)
}

func (l *lyingFS) Create(name string) (vfs.File, error) {
	l.settle()
	return l.file(l.FS.Create(name))
}

func (l *lyingFS) OpenWrite(name string) (vfs.File, error) {
	l.settle()
	return l.file(l.FS.OpenWrite(name))
}

func (l *lyingFS) file(f vfs.File, err error) (vfs.File, error) {
	if err != nil {
		return nil, err
	}
	return &lyingFile{f, l}, nil
}

type lyingFile struct {
	vfs.File
	fs *lyingFS
}

func (f *lyingFile) WriteAt(p []byte, off int64) (int, error) {
	f.fs.settle()
	return f.File.WriteAt(p, off)
}

func (f *lyingFile) WritevAt(pieces [][]byte, off int64) (int64, error) {
	f.fs.settle()
	return f.File.WritevAt(pieces, off)
}

func (f *lyingFile) WriteSectors(pieces [][]byte, off int64) (int64, error) {
	f.fs.settle()
	return f.File.WriteSectors(pieces, off)
}

func (f *lyingFile) Allocate(off, n int64) error {
	f.fs.settle()
	return f.File.Allocate(off, n)
}

func (f *lyingFile) Truncate(size int64) error {
	f.fs.settle()
	return f.File.Truncate(size)
}

func (f *lyingFile) Sync() error {
	f.fs.settle()
	switch {
	case f.fs.lie.Files:
		return nil
	case f.fs.lie.Late:
		f.fs.due = append(f.fs.due, f.File)
		return nil
	}
	return f.File.Sync()
}
