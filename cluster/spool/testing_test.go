package spool_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const dir = "/data/spool"

// queueID makes the n-th id of a test.
func queueID(n int) mail.QueueID {
	var random [10]byte
	binary.BigEndian.PutUint64(random[2:], uint64(n))
	return mail.MintQueueID(uint64(1_700_000_000_000+n), random)
}

// octets makes a body that no other n has.
func octets(n, size int) []byte {
	b := make([]byte, size)
	r := rand.New(rand.NewPCG(uint64(n), 7))
	for i := 0; i < size; i += 8 {
		var word [8]byte
		binary.BigEndian.PutUint64(word[:], r.Uint64())
		copy(b[i:], word[:])
	}
	return b
}

func body(n, size int) (mail.BodyRef, *mail.Body) {
	b := mail.NewBody(octets(n, size))
	return b.Ref(queueID(n)), b
}

func open(t testing.TB, fs vfs.FS, o spool.Options) *spool.Spool {
	t.Helper()
	s, err := spool.Open(fs, dir, o)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func put(t testing.TB, s *spool.Spool, n, size int) mail.BodyRef {
	t.Helper()
	ref, content := body(n, size)
	if err := s.Put(ref, content); err != nil {
		t.Fatalf("put %d: %v", n, err)
	}
	return ref
}

// putLater is put for goroutines other than the test's own.
func putLater(t testing.TB, s *spool.Spool, n, size int) {
	ref, content := body(n, size)
	if err := s.Put(ref, content); err != nil {
		t.Errorf("put %d: %v", n, err)
	}
}

func remove(t testing.TB, s *spool.Spool, refs ...mail.BodyRef) {
	t.Helper()
	doomed := s.Doom(ids(refs))
	if len(doomed) != len(refs) {
		t.Fatalf("doomed %d of %d", len(doomed), len(refs))
	}
	if err := s.Delete(doomed); err != nil {
		t.Fatalf("delete: %v", err)
	}
}

func ids(refs []mail.BodyRef) []mail.QueueID {
	var out []mail.QueueID
	for _, ref := range refs {
		out = append(out, ref.ID)
	}
	return out
}

// read returns an error unless the body reads as the n-th of that size.
func read(s *spool.Spool, ref mail.BodyRef, n int) error {
	r, err := s.Open(ref)
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	got, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if !bytes.Equal(got, octets(n, int(ref.Size))) {
		return fmt.Errorf("body %d reads wrong", n)
	}
	return nil
}
