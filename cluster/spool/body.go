package spool

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"

	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Open returns a reader over the body's octets. The error is ErrNotHeld if the
// body is not here, and ErrCorrupt as well if it is known to be damaged: whoever
// wants it has to fetch it in either case. A doomed body can still be read.
//
// Read from the beginning to the end, the octets are checked on their way: of a
// body whose size or digest is wrong the reader returns ErrCorrupt at some point
// before the last octet, never io.EOF. After a Seek to anywhere but the
// beginning, or past what was read, nothing is checked until the next Seek to
// the beginning.
//
// The reader stays good when the body is deleted. It is not safe for concurrent
// use. It must be closed.
func (s *Spool) Open(ref mail.BodyRef) (io.ReadSeekCloser, error) {
	for {
		at, err := s.find(ref)
		if err != nil {
			return nil, fmt.Errorf("open body %s: %w", ref, err)
		}
		f, err := s.set.Reader(at.Segment)
		if err == nil {
			return &reader{spool: s, ref: ref, at: at, file: f, digest: sha256.New()}, nil
		}
		if !errors.Is(err, segment.ErrGone) && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("open body %s: %w", ref, err)
		}
		// Deleted or copied forward since we looked, and its segment gone. If it is
		// in the index at that place even now, somebody took the file away.
		if again, ferr := s.find(ref); ferr == nil && again == at {
			s.markBad(ref, at, err)
			return nil, fmt.Errorf("open body %s: %w: %w: %w", ref, ErrNotHeld, ErrCorrupt, err)
		}
	}
}

// find returns where the body lies.
func (s *Spool) find(ref mail.BodyRef) (segment.Place, error) {
	select {
	case <-s.stop:
		return segment.Place{}, ErrClosed
	default:
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.index[ref.ID]
	if !ok || !e.is(ref) {
		return segment.Place{}, ErrNotHeld
	}
	if _, bad := s.bad[ref.ID]; bad {
		return segment.Place{}, fmt.Errorf("%w: %w", ErrNotHeld, ErrCorrupt)
	}
	return e.at, nil
}

// verifyBufferBytes is the buffer of Verify.
const verifyBufferBytes = 128 << 10

// Verify reads the whole body and returns nil if each octet is as it was put.
func (s *Spool) Verify(ref mail.BodyRef) error {
	r, err := s.Open(ref)
	if err != nil {
		return err
	}
	buf := make([]byte, min(verifyBufferBytes, int64(ref.Size)+1))
	for err == nil {
		_, err = r.Read(buf)
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if cerr := r.Close(); err == nil && cerr != nil {
		err = fmt.Errorf("close body %s: %w", ref, cerr)
	}
	return err
}

// markBad takes a body that could not be read out of what is held, unless it
// has been written anew in the meantime. Nothing is written down: a restart
// tries again.
func (s *Spool) markBad(ref mail.BodyRef, at segment.Place, cause error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.index[ref.ID]
	if _, bad := s.bad[ref.ID]; !ok || bad || e.at != at {
		return
	}
	s.bad[ref.ID] = struct{}{}
	s.counts.bodyBytes -= ref.Size
	s.counts.found++
	s.log.Error("body is damaged", "queue_id", ref.ID, "segment", at.Segment, "offset", at.Offset(), "error", cause)
}

// FoundBad counts how often since Open a body that was held was found damaged.
// It only grows: whoever looks after what is not held looks again when it has.
func (s *Spool) FoundBad() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.counts.found
}

// A reader reads one body.
type reader struct {
	spool *Spool
	ref   mail.BodyRef
	at    segment.Place
	file  *segment.Reader
	pos   int64
	err   error // sticky, until a Seek

	// digest covers the octets before hashed.
	//
	// Invariant: hashed <= size.
	digest hash.Hash
	hashed int64
}

func (r *reader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(p) == 0 {
		return 0, nil
	}
	size := int64(r.ref.Size)
	want := min(int64(len(p)), size-r.pos)
	if want <= 0 {
		// Only an empty body comes here unchecked, and it has nothing to check.
		r.err = io.EOF
		return 0, r.err
	}
	n, err := r.file.ReadAt(p[:want], r.at.Payload(bodyLabelBytes)+r.pos)
	if int64(n) < want {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // the file's end is not the body's
		}
		return 0, r.fail(err)
	}
	if r.pos == r.hashed {
		r.digest.Write(p[:n])
		r.hashed += int64(n)
		// The last octets are withheld if the digest is wrong: a caller that asks
		// for exactly the body's size may never look at the error beside them.
		if r.hashed == size && mail.Digest(r.digest.Sum(nil)) != r.ref.Digest && !r.spool.controls.Has(controls.ChecksumUnchecked) {
			return 0, r.fail(errDigest)
		}
	}
	r.pos += int64(n)
	return n, nil
}

var errDigest = errors.New("digest differs")

// fail makes cause the reader's error, and the body a bad one.
func (r *reader) fail(cause error) error {
	if errors.Is(cause, fs.ErrClosed) {
		r.err = fmt.Errorf("read body %s: %w", r.ref, cause)
		return r.err
	}
	r.spool.markBad(r.ref, r.at, cause)
	r.err = fmt.Errorf("read body %s: %w: %w", r.ref, ErrCorrupt, cause)
	return r.err
}

var errSeek = errors.New("seek before the beginning of the body")

func (r *reader) Seek(offset int64, whence int) (int64, error) {
	switch whence {
	case io.SeekStart:
	case io.SeekCurrent:
		offset += r.pos
	case io.SeekEnd:
		offset += int64(r.ref.Size)
	default:
		return 0, fmt.Errorf("seek in body %s: unknown whence %d", r.ref, whence)
	}
	if offset < 0 {
		return 0, fmt.Errorf("seek in body %s: %w", r.ref, errSeek)
	}
	if offset == 0 && r.pos != 0 {
		r.digest.Reset()
		r.hashed = 0
	}
	r.pos = offset
	if errors.Is(r.err, io.EOF) {
		r.err = nil
	}
	return offset, nil
}

func (r *reader) Close() error { return r.file.Close() }
