package gate

import (
	"io"
	"net"
)

// A wire is the socket with a count of the octets taken from it. In record mode,
// below TLS, it never gives out octets of two TLS records in one Read, so that
// the layer above holds at most the record that it is working on. That makes
// it possible to say of each plaintext octet which octets on the wire it came
// from, which the proof of read needs.
//
//	record header: 1 byte type, 2 bytes version, 2 bytes length (RFC 8446 section 5.1)
type wire struct {
	net.Conn
	taken int64 // octets taken from the socket

	records     bool
	buf         []byte // in record mode only
	r, w        int    // buf[r:w] was taken and not given out
	recordStart int64  // position of the record being given out
	recordLeft  int    // octets of it not yet given out
}

const recordHeaderBytes = 5

// wireBytes is how much is read ahead in record mode.
const wireBytes = 4 << 10

// readRecords turns record mode on.
func (w *wire) readRecords() { w.records, w.buf = true, make([]byte, wireBytes) }

func (w *wire) Read(p []byte) (int, error) {
	if !w.records {
		n, err := w.Conn.Read(p)
		w.taken += int64(n)
		return n, err
	}
	if w.recordLeft == 0 {
		for w.w-w.r < recordHeaderBytes {
			if err := w.fill(); err != nil {
				return 0, err
			}
		}
		w.recordStart = w.taken - int64(w.w-w.r)
		w.recordLeft = recordHeaderBytes + int(w.buf[w.r+3])<<8 + int(w.buf[w.r+4])
	}
	if len(p) > w.recordLeft {
		p = p[:w.recordLeft]
	}
	if w.r == w.w && len(p) >= len(w.buf) { // Large records need no copy.
		n, err := w.Conn.Read(p)
		w.taken += int64(n)
		w.recordLeft -= n
		return n, err
	}
	if w.r == w.w {
		if err := w.fill(); err != nil {
			return 0, err
		}
	}
	n := copy(p, w.buf[w.r:w.w])
	w.r += n
	w.recordLeft -= n
	return n, nil
}

// fill takes octets from the socket into buf, which has room: it is called
// only while fewer than recordHeaderBytes are in it.
func (w *wire) fill() error {
	copy(w.buf, w.buf[w.r:w.w])
	w.w -= w.r
	w.r = 0
	n, err := w.Conn.Read(w.buf[w.w:])
	w.taken += int64(n)
	w.w += n
	if n > 0 {
		return nil
	}
	if err == nil {
		err = io.ErrNoProgress
	}
	return err
}

// Arrived is implemented by connections, in-memory ones, that can tell how many
// octets have reached them and were not read yet. Without it, and without a
// socket to ask, no 250 on that connection is ever taken for read: the safe
// side, since it only keeps fingerprints longer.
type Arrived interface {
	Arrived() int
}

// arrived returns the count of octets that have reached us: taken from the
// socket, or waiting in it.
func (w *wire) arrived() (int64, bool) {
	if a, ok := w.Conn.(Arrived); ok {
		return w.taken + int64(a.Arrived()), true
	}
	n, ok := socketArrived(w.Conn)
	return w.taken + int64(n), ok
}
