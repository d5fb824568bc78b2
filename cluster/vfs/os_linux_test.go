package vfs

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"testing"
)

// What is written in sectors and what is written through the page cache come out as
// one file, whoever has read it in between.
func TestWriteSectors(t *testing.T) {
	f, err := OS().Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	const size = 1 << 20
	want := make([]byte, size)
	if _, err := f.WriteAt(want, 0); err != nil {
		t.Fatal(err)
	}
	sector := f.Sector()
	if sector == 0 {
		if _, err := f.WriteSectors([][]byte{Aligned(512)}, 0); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("no sectors, and yet: %v", err)
		}
		t.Skip("this file system or its disk says nothing about sectors")
	}
	r := rand.New(rand.NewPCG(1, 1))
	got := make([]byte, size)
	for range 500 {
		off := r.IntN(size/sector-40) * sector
		p := Aligned((1 + r.IntN(40)) * sector)
		for i := range p {
			p[i] = byte(r.Uint32())
		}
		write := f.WriteSectors
		if r.IntN(3) == 0 {
			write = f.WritevAt
		}
		cut := r.IntN(len(p)/alignment+1) * alignment
		if n, err := write([][]byte{p[:cut], p[cut:]}, int64(off)); n != int64(len(p)) || err != nil {
			t.Fatalf("%d of %d octets: %v", n, len(p), err)
		}
		copy(want[off:], p)
		switch r.IntN(3) {
		case 0:
			if err := f.Sync(); err != nil {
				t.Fatal(err)
			}
		case 1:
			if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("the file has other octets: %v", err)
			}
		}
	}
	if n, err := f.Size(); n != size || err != nil {
		t.Errorf("%d octets: %v", n, err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteSectors([][]byte{Aligned(sector)}, 0); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed, and yet: %v", err)
	}
}

// A file that its name has left is written to all the same.
func TestWriteSectorsOfRenamed(t *testing.T) {
	dir := t.TempDir()
	f, err := OS().Create(filepath.Join(dir, "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if _, err := f.WriteAt(make([]byte, alignment), 0); err != nil {
		t.Fatal(err)
	}
	if err := OS().Rename(filepath.Join(dir, "f"), filepath.Join(dir, "g")); err != nil {
		t.Fatal(err)
	}
	if f.Sector() == 0 {
		t.Skip("this file system or its disk says nothing about sectors")
	}
	p := Aligned(f.Sector())
	p[0] = 'x'
	if _, err := f.WriteSectors([][]byte{p}, 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.ReadAt(p[1:2], 0); err != nil || p[1] != 'x' {
		t.Errorf("reads %q, %v", p[1], err)
	}
}
