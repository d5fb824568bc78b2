package spool

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"io/fs"
	"math"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The rules of compaction. A segment less than 1/compactBelow of which is live
// is copied forward. So is the emptiest one, as long as the directory is longer
// than compactFactor times what is live and compactSlack segments; that many
// because the pool and the segment that is being written count, too.
//
// It ends: where every segment is at least 1/compactFactor live, the directory
// is not too long.
const (
	compactBelow          = 4
	compactFactor float64 = 1.2
	compactSlack          = 6
)

// compactStepBytes is copied with one job, so that a Put which comes next waits
// for little; a larger body is a step of its own. compactRate is octets a second.
const (
	compactStepBytes = 1 << 20
	compactRate      = 32 << 20
)

// prewriteEvery is the pause between two steps of writing segments ahead. One is
// made only if nothing was written meanwhile. spaceEvery is the pause when the
// disk has no room for that, and between two looks whether there is any at all.
const (
	prewriteEvery = 25 * time.Millisecond
	spaceEvery    = 10 * time.Second
)

// keepDelay is how long the keeper lets things settle before it looks: at the
// start, and after something was deleted. A queue that drains empties most
// segments by itself.
const keepDelay = time.Second

// keep is the keeper goroutine: it copies bodies forward, so that their segments
// can go, and has segments written ahead. It decides nothing that a Put or a
// Delete depends on.
func (s *Spool) keep() {
	for s.rest(keepDelay, nil) != stopped {
		for n, ok := s.victim(); ok; n, ok = s.victim() {
			if !s.compact(n) {
				return
			}
		}
		if s.prewrite() == stopped {
			return
		}
	}
}

// prewrite has segments written ahead while nothing else is written, until it is
// nudged. Where it has written any it returns at once: they count in the length
// of the directory, and another look is due at what is to be copied forward.
//
// Where the disk has no room for mail, it has those removed: they are room.
func (s *Spool) prewrite() event {
	for s.tight() && s.set.Shed() {
		// One after the other: each is a large part of a small disk.
	}
	if !s.set.PrewriteWanted() {
		if s.set.Stats().PoolFiles == 0 {
			return s.rest(forever, s.wake)
		}
		return s.rest(spaceEvery, s.wake)
	}
	seen := s.batches.Load()
	for s.set.PrewriteWanted() {
		pause := prewriteEvery
		if !s.spacious() {
			pause = spaceEvery
		}
		if e := s.rest(pause, s.wake); e != rested || s.tight() {
			return e
		}
		now := s.batches.Load()
		if now == seen && pause == prewriteEvery {
			s.set.Prewrite()
		}
		seen = now
	}
	return rested
}

// nudge makes the keeper look again.
func (s *Spool) nudge() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// An event is what ended a rest.
type event uint8

const (
	rested  event = iota
	nudged        // something has changed
	stopped       // the spool takes nothing more
)

const forever time.Duration = math.MaxInt64

// rest waits for that long, or until wake, if there is one.
func (s *Spool) rest(pause time.Duration, wake <-chan struct{}) event {
	var timer <-chan time.Time
	if pause < forever {
		t := time.NewTimer(pause)
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-s.stop:
		return stopped
	case <-s.failed:
		return stopped
	case <-timer:
		return rested
	case <-wake:
		return nudged
	}
}

// victim returns the segment that is to be copied forward next, if there is one.
func (s *Spool) victim() (segment.Number, bool) {
	infos, total := s.set.Segments(), s.set.Stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	var live int64
	emptiest, share := segment.Number(0), 1.0
	for _, g := range infos {
		u := s.uses[g.Number]
		if u == nil {
			continue
		}
		live += u.liveBytes
		if !g.Sealed || u.lost || u.stuck || u.live == 0 {
			continue
		}
		if part := float64(u.liveBytes) / float64(g.Bytes); cmp.Compare(part, share) < 0 {
			emptiest, share = g.Number, part
		}
	}
	long := float64(total.Bytes+total.PoolBytes) > compactFactor*float64(live)+float64(compactSlack*s.limit)
	return emptiest, emptiest != 0 && (share*compactBelow < 1 || long)
}

// compact copies what is live in a segment forward, and frees it. It reports
// false when the spool takes nothing more.
func (s *Spool) compact(n segment.Number) bool {
	c := &compaction{spool: s}
	err := c.run(n)
	if err == nil {
		// The tombstones of the old records, and with them the segment.
		err = s.do(&job{kind: jobDelete})
	}
	s.mu.Lock()
	if u := s.uses[n]; u != nil {
		u.stuck = true
	}
	s.mu.Unlock()
	switch {
	case errors.Is(err, ErrClosed) || s.Err() != nil:
		return false
	case err != nil:
		s.log.Error("segment cannot be compacted", "segment", n, "error", err)
	}
	return true
}

// A compaction is the copying forward of one segment.
type compaction struct {
	spool *Spool
	step  []written
	bytes int64 // of the step
	buf   []byte
}

func (c *compaction) run(n segment.Number) error {
	r, err := c.spool.set.Reader(n)
	if errors.Is(err, segment.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	// Closed before the segment is freed, or its file could not be used again.
	defer func() { _ = r.Close() }()
	if err := r.Records(func(one segment.Record) error { return c.consider(r, one) }); err != nil {
		return err
	}
	return c.flush()
}

// consider copies one record, if a body that is needed lies in it.
func (c *compaction) consider(r *segment.Reader, one segment.Record) error {
	if one.Kind != kindBody {
		return nil
	}
	ref, ok := parseBodyLabel(one.Label, one.Length)
	if !ok {
		return nil
	}
	if c.bytes > 0 && c.bytes+one.Length > compactStepBytes {
		if err := c.flush(); err != nil {
			return err
		}
	}
	s := c.spool
	s.mu.Lock()
	lies := s.liesLocked(ref, one.Place)
	s.mu.Unlock()
	if !lies {
		return nil
	}
	b := c.room(one.Length)
	if _, err := r.ReadAt(b, one.Place.Payload(bodyLabelBytes)); err != nil && errors.Is(err, fs.ErrClosed) {
		return err
	} else if mail.Digest(sha256.Sum256(b)) != ref.Digest {
		// Never copied: whoever needs it fetches it from a peer.
		s.markBad(ref, one.Place, errors.Join(errDigest, err))
		return nil
	}
	c.step = append(c.step, written{ref: ref, payload: segment.NewPayload(b), from: one.Place})
	c.bytes += max(1, one.Length)
	return nil
}

// room returns n octets that stay untouched until the step is done.
func (c *compaction) room(n int64) []byte {
	if n > compactStepBytes {
		return make([]byte, n)
	}
	if c.buf == nil {
		c.buf = make([]byte, 0, compactStepBytes)
	}
	if int64(cap(c.buf)-len(c.buf)) < n {
		c.buf = make([]byte, 0, compactStepBytes)
	}
	at := len(c.buf)
	c.buf = c.buf[:at+int(n)]
	return c.buf[at:]
}

// flush has the step written, and rests for as long as it is worth.
func (c *compaction) flush() error {
	if len(c.step) == 0 {
		return nil
	}
	s := c.spool
	if err := s.do(&job{kind: jobCopy, copies: c.step}); err != nil {
		return err
	}
	pause := time.Duration(c.bytes) * time.Second / compactRate
	c.step, c.bytes, c.buf = nil, 0, c.buf[:0]
	if s.rest(pause, nil) == stopped {
		return ErrClosed
	}
	return nil
}
