package spool

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/deploy/controls"
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

// store says in each segment whose it is.
const store = "spool"

// Options tunes a spool. The zero value is good for a node whose disk nobody
// measures: nothing is written ahead.
type Options struct {
	// SegmentBytes is the length at which a new segment is begun; 0 is 64 MiB. A
	// larger body gets a segment of its own.
	SegmentBytes mail.ByteSize
	// PoolFiles is how many segments are kept that are written already.
	PoolFiles int
	// Spacious reports whether the disk has room for files that are not needed
	// yet; nil is always. It is asked before each step of writing ahead.
	Spacious func() bool
	// Tight reports whether the disk has so little room that mail is refused for it; nil
	// is never. What is written ahead is removed then.
	Tight func() bool
	// Now is the process's clock, for Held.Since only; nil is time.Now.
	Now func() time.Time
	// Random is where the marks of segments are drawn from; nil is
	// crypto/rand.
	Random io.Reader
	// Log gets what is found damaged; nil discards.
	Log *slog.Logger
	// Controls breaks single rules, in builds with the tag controls alone.
	Controls controls.Set
}

// A Spool is an open directory of bodies.
type Spool struct {
	set      *segment.Set
	dir      string
	limit    int64
	now      func() time.Time
	spacious func() bool
	tight    func() bool
	log      *slog.Logger
	controls controls.Set
	opened   time.Time

	line   *line
	stop   chan struct{} // closed by Close
	failed chan struct{} // closed with the first error of a write
	// run waits for the writer and the keeper.
	run sync.WaitGroup
	// wake has a value when the keeper should look again.
	wake    chan struct{}
	batches atomic.Uint64 // written so far; tells the keeper whether the disk is idle

	closing  sync.Once
	closeErr error

	// owed are deletions to write with the next batch: of records that another
	// record of the same body stands in for. Only the writer touches it.
	owed []deletion
	// active is the segment that the last batch went to; the writer's, too.
	active segment.Number

	// mu is the pin lock. It is never held over I/O or over anything else that
	// waits.
	mu sync.Mutex
	// Invariant: what is in index is on stable storage.
	index map[mail.QueueID]entry
	// Invariant: bad and doomed name only ids that are in index, pins only those
	// and what is coming.
	bad    map[mail.QueueID]struct{} // seen damaged since Open
	doomed map[mail.QueueID]struct{} // to be deleted unless spared
	// Invariant: an id that is pinned while it is held is not in doomed.
	pins map[mail.QueueID]int
	// coming are the bodies that the writer has been given. What is in it will be
	// in index, or the spool fails.
	coming  map[mail.QueueID]*coming
	waiters waiters
	uses    map[segment.Number]*use
	err     error // the latch
	counts  counts
}

// An entry is a held body in memory: 48 bytes beside its 16 of key. A map that
// has just grown is half empty: a million of them cost up to 150 MB.
type entry struct {
	digest mail.Digest
	size   uint32
	at     segment.Place
	since  uint32 // seconds after Open, rounded up
}

func (e entry) ref(id mail.QueueID) mail.BodyRef {
	return mail.BodyRef{ID: id, Digest: e.digest, Size: mail.ByteSize(e.size)}
}

func (e entry) deletion(id mail.QueueID) deletion {
	return deletion{id: id, size: e.size, at: e.at}
}

func (e entry) is(ref mail.BodyRef) bool {
	return e.digest == ref.Digest && mail.ByteSize(e.size) == ref.Size
}

// A use is what a segment is still needed for.
type use struct {
	// live counts the bodies that need the segment: held, bad, or superseded and
	// not yet struck out by a durable deletion. liveBytes is their room.
	live      int
	liveBytes int64
	// deletions in this segment that concern others. While one of those exists,
	// this one must not go, or the body would rise again.
	deletions []deletion
	// stuck: compaction found a body in it that cannot be copied. It is left
	// alone until something in it is deleted.
	stuck bool
	// lost: the file's head cannot be read. It is never removed.
	lost bool
}

func (u *use) need(size uint32) {
	u.live++
	u.liveBytes += roomOf(size)
}

func (u *use) unneed(size uint32) {
	u.live--
	u.liveBytes -= roomOf(size)
	u.stuck = false
}

// useLocked returns what is known of a segment, from the first record in it on.
func (s *Spool) useLocked(n segment.Number) *use {
	u := s.uses[n]
	if u == nil {
		u = new(use)
		s.uses[n] = u
	}
	return u
}

type counts struct {
	bodyBytes mail.ByteSize
	puts      uint64
	compacted mail.ByteSize
	found     uint64 // bodies found damaged
}

// Stats is a count of what is there and of what was done since Open.
type Stats struct {
	Bodies    int           // held
	BodyBytes mail.ByteSize // of those
	Pinned    int
	Doomed    int
	Waiting   int // names that Arrived keeps a channel for

	Segments  int
	PoolFiles int // files that were written ahead, or used before
	// LiveBytes is the room of the bodies that are still needed, DiskBytes the
	// length of all files, the pool's included.
	LiveBytes mail.ByteSize
	DiskBytes mail.ByteSize

	Puts  uint64 // bodies written
	Syncs uint64 // syncs of segments that carried bodies or deletions
	// Compacted counts the octets of bodies that were copied forward.
	Compacted mail.ByteSize

	// Bad counts the bodies that were read and found damaged, and are not held
	// any more. Damage counts the places, found when the spool was opened, where
	// something that had been durable cannot be read. Torn counts the places where
	// a crash left a record half written that nobody had been told of.
	Bad    int
	Damage int
	Torn   int
}

// Open opens the spool in dir, which it makes if it has to, and repairs what a
// crash left behind. It fails with vfs.ErrLocked if another process has it. A
// directory of the first format is taken over.
func Open(fs vfs.FS, dir string, o Options) (_ *Spool, err error) {
	s := &Spool{
		dir:      dir,
		limit:    int64(o.SegmentBytes),
		now:      o.Now,
		spacious: o.Spacious,
		tight:    o.Tight,
		log:      o.Log,
		controls: o.Controls,
		line:     newLine(),
		stop:     make(chan struct{}),
		failed:   make(chan struct{}),
		wake:     make(chan struct{}, 1),
		index:    make(map[mail.QueueID]entry),
		bad:      make(map[mail.QueueID]struct{}),
		doomed:   make(map[mail.QueueID]struct{}),
		pins:     make(map[mail.QueueID]int),
		coming:   make(map[mail.QueueID]*coming),
		waiters:  newWaiters(),
		uses:     make(map[segment.Number]*use),
	}
	if s.limit <= 0 {
		s.limit = segment.SegmentBytesDefault
	}
	if s.now == nil {
		s.now = time.Now
	}
	if s.spacious == nil {
		s.spacious = func() bool { return true }
	}
	if s.tight == nil {
		s.tight = func() bool { return false }
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.opened = s.now()
	old, err := setFormat1Aside(fs, dir)
	if err != nil {
		return nil, fmt.Errorf("open spool %s: %w", dir, err)
	}
	s.set, err = segment.Open(fs, dir, segment.Options{
		Store: store, SegmentBytes: s.limit, PoolFiles: o.PoolFiles, Random: o.Random, Log: s.log,
	}, s.enter)
	if err != nil {
		return nil, fmt.Errorf("open spool %s: %w", dir, err)
	}
	s.survey()
	if err = s.takeOver(fs, old); err == nil {
		err = s.free()
	}
	if err != nil {
		_ = s.set.Close()
		return nil, fmt.Errorf("open spool %s: %w", dir, err)
	}
	s.run.Go(s.write)
	s.run.Go(s.keep)
	return s, nil
}

// Close ends the spool. Puts and Deletes that the writer has taken are
// finished first; the others get ErrClosed. Readers that are open stay usable.
// If the spool has failed while it was written to, the error says so again.
func (s *Spool) Close() error {
	s.closing.Do(func() {
		close(s.stop)
		s.run.Wait()
		if s.closeErr = s.set.Close(); s.closeErr != nil {
			s.closeErr = fmt.Errorf("close spool: %w", s.closeErr)
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
	set := s.set.Stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Stats{
		Bodies:    len(s.index) - len(s.bad),
		BodyBytes: s.counts.bodyBytes,
		Pinned:    len(s.pins),
		Doomed:    len(s.doomed),
		Waiting:   s.waiters.len(),
		Segments:  set.Segments,
		PoolFiles: set.PoolFiles,
		DiskBytes: mail.ByteSize(set.Bytes + set.PoolBytes),
		Puts:      s.counts.puts,
		Syncs:     set.Syncs,
		Compacted: s.counts.compacted,
		Bad:       len(s.bad),
		Damage:    set.Damage,
		Torn:      set.Torn,
	}
	for _, u := range s.uses {
		st.LiveBytes += mail.ByteSize(u.liveBytes)
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
