package spool

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

var (
	// ErrNotHeld: no body of that name is here, or it is about to be deleted.
	ErrNotHeld = errors.New("body is not held")
	// ErrCorrupt: what lies on the disk is not the body that was put there.
	// From then on the body is not held, and Open says both; a Put writes it anew.
	ErrCorrupt = errors.New("body is damaged")
	// ErrConflict: a different body is held under the same queue id.
	ErrConflict = errors.New("another body is held under this queue id")
	// ErrMismatch: the octets given to Put are not those that the reference
	// names. Nothing was written.
	ErrMismatch = errors.New("octets do not match the body reference")
	// ErrTooLarge: the body is larger than BodyBytesMax.
	ErrTooLarge = errors.New("body is larger than a segment can be")
	// ErrClosed: the spool has been closed.
	ErrClosed = errors.New("spool is closed")
)

// BodyBytesMax is the largest body that a spool takes. Admission has a much
// lower limit; this one keeps sizes within 32 bits.
const BodyBytesMax = 1 * mail.GiB

// segmentBytesDefault is the length at which a segment is full. A larger body
// gets a segment of its own.
const segmentBytesDefault = 64 * mail.MiB

// lockName is the file whose lock keeps a second process out.
const lockName = "LOCK"

// Options tunes a spool. The zero value is what a node uses.
type Options struct {
	// SegmentBytes is the length at which a new segment is begun; 0 is 64 MiB.
	SegmentBytes mail.ByteSize
	// Now is the process's clock, for Held.Since only; nil is time.Now.
	Now func() time.Time
	// Random is where the marks of segments are drawn from; nil is
	// crypto/rand.
	Random io.Reader
	// Log gets what is found damaged; nil discards.
	Log *slog.Logger
}

// A Spool is an open directory of bodies.
type Spool struct {
	fs     vfs.FS
	dir    string
	limit  int64
	now    func() time.Time
	random io.Reader
	log    *slog.Logger
	opened time.Time
	lock   io.Closer

	jobs   chan *job
	stop   chan struct{} // closed by Close
	done   chan struct{} // closed when the writer has ended
	failed chan struct{} // closed with the first error of a write

	closing  sync.Once
	closeErr error

	// writer is what only the writer goroutine touches.
	writer writer

	// mu is the pin lock. It is never held over I/O or over anything else that
	// waits.
	mu sync.Mutex
	// Invariant: what is in index is on stable storage.
	index map[mail.QueueID]entry
	// Invariant: bad, doomed and pins name only ids that are in index.
	bad    map[mail.QueueID]struct{} // seen damaged since Open
	doomed map[mail.QueueID]struct{} // to be deleted unless spared
	// Invariant: an id in pins is not in doomed.
	pins     map[mail.QueueID]int
	waiters  waiters
	segments map[segmentNumber]*segment
	err      error // the latch
	counts   counts
}

// An entry is a held body in memory: 48 bytes beside its 16 of key, so that a
// million of them cost about 100 MB.
type entry struct {
	digest mail.Digest
	size   uint32
	at     place
	since  uint32 // seconds after Open, rounded up
}

func (e entry) ref(id mail.QueueID) mail.BodyRef {
	return mail.BodyRef{ID: id, Digest: e.digest, Size: mail.ByteSize(e.size)}
}

func (e entry) is(ref mail.BodyRef) bool {
	return e.digest == ref.Digest && mail.ByteSize(e.size) == ref.Size
}

// A segment is one file.
type segment struct {
	number segmentNumber
	mark   mark
	// live counts the bodies that need the file: held, bad, or superseded and
	// not yet struck out by a durable deletion.
	live int
	end  int64 // length of the file
	// deletions in this file that concern other files. While one of those
	// exists, this file must not go, or the body would rise again.
	deletions []deletion
	// damaged: the header cannot be read. Such a file is never removed.
	damaged bool
}

type counts struct {
	bodyBytes mail.ByteSize
	puts      uint64
	syncs     uint64
	damage    int
	torn      int
}

// Stats is a count of what is there and of what was done since Open.
type Stats struct {
	Bodies    int           // held
	BodyBytes mail.ByteSize // of those
	Pinned    int
	Doomed    int
	Waiting   int // names that Arrived keeps a channel for

	Segments  int
	DiskBytes mail.ByteSize // length of all segments

	Puts  uint64 // bodies written
	Syncs uint64 // syncs of segments that carried bodies or deletions

	// Bad counts the bodies that were read and found damaged, and are not held
	// any more. Damage counts the places, found when the spool was opened, where
	// a record that had been durable cannot be read. Torn counts the places where
	// a crash left a record half written that nobody had been told of.
	Bad    int
	Damage int
	Torn   int
}

// Open opens the spool in dir, which it makes if it has to, and repairs what a
// crash left behind. It fails with vfs.ErrLocked if another process has it.
func Open(fs vfs.FS, dir string, o Options) (_ *Spool, err error) {
	s := &Spool{
		fs:       fs,
		dir:      dir,
		limit:    int64(o.SegmentBytes),
		now:      o.Now,
		random:   o.Random,
		log:      o.Log,
		jobs:     make(chan *job),
		stop:     make(chan struct{}),
		done:     make(chan struct{}),
		failed:   make(chan struct{}),
		index:    make(map[mail.QueueID]entry),
		bad:      make(map[mail.QueueID]struct{}),
		doomed:   make(map[mail.QueueID]struct{}),
		pins:     make(map[mail.QueueID]int),
		waiters:  newWaiters(),
		segments: make(map[segmentNumber]*segment),
	}
	if s.limit <= 0 {
		s.limit = int64(segmentBytesDefault)
	}
	s.limit = min(s.limit, segmentBytesLimit/2)
	if s.now == nil {
		s.now = time.Now
	}
	if s.random == nil {
		s.random = rand.Reader
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.opened = s.now()
	if err := fs.MkdirAll(dir); err != nil {
		return nil, fmt.Errorf("make spool directory: %w", err)
	}
	if s.lock, err = fs.Lock(filepath.Join(dir, lockName)); err != nil {
		return nil, fmt.Errorf("open spool %s: %w", dir, err)
	}
	if err := s.load(); err != nil {
		if s.writer.file != nil {
			_ = s.writer.file.Close()
		}
		_ = s.lock.Close()
		return nil, fmt.Errorf("open spool %s: %w", dir, err)
	}
	go s.write()
	return s, nil
}

// Close ends the spool. Puts and Deletes that the writer has taken are
// finished first; the others get ErrClosed. Readers that are open stay usable.
// If the spool has failed while it was written to, the error says so again.
func (s *Spool) Close() error {
	s.closing.Do(func() {
		close(s.stop)
		<-s.done
		s.closeErr = s.writer.closeErr
		if err := s.lock.Close(); s.closeErr == nil {
			s.closeErr = err
		}
	})
	return s.closeErr
}

// Failed is closed when a write, an fsync or an unlink has failed. The spool
// takes nothing more; what it holds can be read.
func (s *Spool) Failed() <-chan struct{} { return s.failed }

// Err returns the error that Failed is about, nil before that.
func (s *Spool) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// fail latches the first error and returns it.
func (s *Spool) fail(err error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
		close(s.failed)
		s.log.Error("spool has failed and takes nothing more", "dir", s.dir, "error", err)
	}
	return s.err
}

// Stats returns the counts of this moment.
func (s *Spool) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Bodies:    len(s.index) - len(s.bad),
		BodyBytes: s.counts.bodyBytes,
		Pinned:    len(s.pins),
		Doomed:    len(s.doomed),
		Waiting:   s.waiters.len(),
		Segments:  len(s.segments),
		Puts:      s.counts.puts,
		Syncs:     s.counts.syncs,
		Bad:       len(s.bad),
		Damage:    s.counts.damage,
		Torn:      s.counts.torn,
	}
	for _, g := range s.segments {
		st.DiskBytes += mail.ByteSize(g.end)
	}
	return st
}

// sinceOpen is the clock of entry.since. Rounding up means that no body ever
// looks older than it is.
func (s *Spool) sinceOpen() uint32 {
	d := s.now().Sub(s.opened)
	if d <= 0 {
		return 0
	}
	return uint32((d + time.Second - 1) / time.Second)
}
