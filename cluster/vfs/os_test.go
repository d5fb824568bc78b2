package vfs

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// WritevAt writes what one WriteAt of everything would, however many pieces
// there are and wherever the kernel stops.
func TestWritev(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for _, many := range []int{0, 1, 2, 1023, 1024, 1025, 5000} {
		var pieces [][]byte
		var want []byte
		for range many {
			p := make([]byte, r.IntN(300))
			for i := range p {
				p[i] = byte(r.Uint32())
			}
			pieces = append(pieces, p)
			want = append(want, p...)
		}
		kept := make([][]byte, len(pieces))
		copy(kept, pieces)
		f, err := OS().Create(filepath.Join(t.TempDir(), "f"))
		if err != nil {
			t.Fatal(err)
		}
		n, err := f.WritevAt(pieces, 77)
		if err != nil || n != int64(len(want)) {
			t.Fatalf("%d pieces: wrote %d of %d: %v", many, n, len(want), err)
		}
		got := make([]byte, len(want))
		if _, err := f.ReadAt(got, 77); err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Errorf("%d pieces: the file has other octets", many)
		}
		for i := range kept {
			if !bytes.Equal(kept[i], pieces[i]) || len(kept[i]) != len(pieces[i]) {
				t.Fatalf("%d pieces: the caller's slice was changed", many)
			}
		}
		if size, err := f.Size(); err != nil || many > 0 && size != 77+int64(len(want)) {
			t.Errorf("%d pieces: %d octets, %v", many, size, err)
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// Forget changes nothing, of what is synced and of what is not.
func TestForget(t *testing.T) {
	f, err := OS().Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 6<<20)
	for i := range want {
		want[i] = byte(i>>12 ^ i)
	}
	half := len(want)/2 + 333
	_, err = f.WriteAt(want[:half], 0)
	err = errors.Join(err, f.Sync())
	_, werr := f.WriteAt(want[half:], int64(half))
	if err := errors.Join(err, werr); err != nil {
		t.Fatal(err)
	}
	f.Forget(0, int64(len(want)))
	f.Forget(5<<20, 5<<20)
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the file has other octets: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// Allocate makes a file longer, by zeros, and leaves alone what is there: room that
// was set aside is written to in any way.
func TestAllocate(t *testing.T) {
	f, err := OS().Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	want := make([]byte, 3<<20)
	copy(want, "what is there")
	if _, err := f.WriteAt(want[:5000], 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Allocate(100, int64(len(want))-100); err != nil {
		_ = f.Close()
		t.Skipf("this file system sets no room aside: %v", err)
	}
	check := func(when string) {
		t.Helper()
		got := make([]byte, len(want)+1)
		if n, err := f.ReadAt(got, 0); n != len(want) || !errors.Is(err, io.EOF) || !bytes.Equal(got[:n], want) {
			t.Errorf("%s: %d octets, or others: %v", when, n, err)
		}
	}
	check("set aside")
	p := Aligned(1 << 20)
	for i := range p {
		p[i] = byte(i ^ i>>12)
	}
	for _, off := range []int{8192, 2 << 20} {
		write := f.WriteSectors
		if f.Sector() == 0 {
			write = f.WritevAt
		}
		if _, err := write([][]byte{p[:4096], p[4096:]}, int64(off)); err != nil {
			t.Fatal(err)
		}
		copy(want[off:], p)
		check("written")
	}
	if err := errors.Join(f.Truncate(2<<20+777), f.Sync()); err != nil {
		t.Fatal(err)
	}
	want = want[:2<<20+777]
	check("cut")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Allocate(0, 1); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("closed, and yet: %v", err)
	}
}

// What is read of a file that was opened for reading cannot be written.
func TestWritevFails(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	f, err := OS().Create(name)
	if err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	f, err = OS().Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if n, err := f.WritevAt([][]byte{[]byte("x")}, 0); n != 0 || !errors.Is(err, unix.EBADF) {
		t.Errorf("wrote %d, %v", n, err)
	}
}
