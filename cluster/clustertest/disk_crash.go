package clustertest

import (
	"bytes"
	"io/fs"
	"path/filepath"
	"slices"
)

// Crash is a power failure. The process that had the disk mounted is dead; what
// no sync covered is kept, lost or torn, as the seed will have it.
func (d *Disk) Crash() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.killLocked()
	d.traceLocked(Event{Op: OpCrash})
	// Some crashes come right after the kernel wrote everything back, some before
	// it wrote anything.
	kept := []float64{0, 0.25, 0.75, 1}[d.random.IntN(4)]
	dirs := make([]string, 0, len(d.dirs))
	for name := range d.dirs {
		dirs = append(dirs, name)
	}
	slices.Sort(dirs)
	for _, name := range dirs {
		d.crashDirectory(name, d.dirs[name], kept)
	}
}

func (d *Disk) crashDirectory(path string, dir *directory, kept float64) {
	for _, c := range dir.pending {
		if d.random.Float64() < kept {
			c.apply(dir.durable)
		}
	}
	dir.pending = nil
	names := make([]string, 0, len(dir.durable))
	for name := range dir.durable {
		names = append(names, name)
	}
	slices.Sort(names)
	dir.names = make(map[string]*inode, len(names))
	seen := make(map[*inode]bool)
	for _, name := range names {
		// A rename of which a crash kept only half does not occur: apply does
		// both. One name per file is what every change leaves.
		f := dir.durable[name]
		dir.names[name] = f
		f.name = filepath.Join(path, name) // its latest may have been lost
		if !seen[f] {
			seen[f] = true
			d.crashFile(f, kept)
		}
	}
}

func (d *Disk) crashFile(f *inode, kept float64) {
	for _, c := range f.pending {
		switch {
		case d.random.Float64() < kept:
			f.durable = c.apply(f.durable)
		case c.data != nil && d.random.IntN(2) == 0:
			f.durable = d.tear(c, f.durable)
		}
	}
	f.pending = nil
	f.content = slices.Clone(f.durable)
}

// tear applies some sectors of a write: those before a point, or any. Where the
// file grew and a sector is missing, there are zeros, or what lay there before.
func (d *Disk) tear(c change, to []byte) []byte {
	old := int64(len(to))
	prefix := d.random.IntN(2) == 0
	garbage := d.random.IntN(4) == 0
	cut := c.offset + d.random.Int64N(int64(len(c.data))+1)
	for from := c.offset; from < c.offset+int64(len(c.data)); {
		next := min((from/sectorBytes+1)*sectorBytes, c.offset+int64(len(c.data)))
		piece := c.data[from-c.offset : next-c.offset]
		keep := d.random.IntN(2) == 0
		if prefix {
			keep = next <= cut
		}
		switch {
		case keep:
			to = change{offset: from, data: piece}.apply(to)
		case garbage && from >= old:
			junk := make([]byte, len(piece))
			for i := range junk {
				junk[i] = byte(d.random.Uint32())
			}
			to = change{offset: from, data: junk}.apply(to)
		}
		from = next
	}
	return to
}

// ReadFile returns what processes see in a file.
func (d *Disk) ReadFile(name string) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.find(name)
	if f == nil {
		return nil, &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
	}
	return slices.Clone(f.content), nil
}

// Names returns the names in a directory, sorted.
func (d *Disk) Names(dir string) []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var names []string
	if dd := d.dirs[filepath.Clean(dir)]; dd != nil {
		for name := range dd.names {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// Damage inverts the bits of mask in one byte of a file, in memory and on the
// disk, as rot does. It reports whether the file is that long.
func (d *Disk) Damage(name string, offset int64, mask byte) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	f := d.find(name)
	if f == nil || offset < 0 || offset >= int64(len(f.content)) {
		return false
	}
	f.content[offset] ^= mask
	if offset < int64(len(f.durable)) {
		f.durable[offset] = f.content[offset]
	}
	return true
}

// DamageOctets inverts the lowest bit of the first of these octets, wherever they
// lie first in a file of the directory, in what programs read and in what the
// disk keeps. It reports false if no file has them.
func (d *Disk) DamageOctets(dir string, octets []byte) bool {
	for _, name := range d.Names(dir) {
		name = filepath.Join(dir, name)
		content, err := d.ReadFile(name)
		if err != nil {
			continue
		}
		if at := bytes.Index(content, octets); at >= 0 {
			return d.Damage(name, int64(at), 1)
		}
	}
	return false
}

func (d *Disk) find(name string) *inode {
	dir, base := filepath.Split(filepath.Clean(name))
	if dd := d.dirs[filepath.Clean(dir)]; dd != nil {
		return dd.names[base]
	}
	return nil
}
