package transport

import (
	"net"
	"sync"
)

// A wire is the socket below TLS. TLS writes record by record, 16 KiB each, and
// reads about as little at a time; each is a system call, and each call costs
// more than the octets in it. So the records of one Write go to the socket
// together, and a read takes whatever is there.
//
// It is for one reader at a time, and any number of writers: TLS writes its
// alerts and key updates whenever it wants to.
type wire struct {
	net.Conn

	in   []byte // read and not yet used: in[r:w]
	r, w int

	mu      sync.Mutex // held over writes, so that records keep their order
	out     []byte     // records that wait for release
	holding bool       // Write keeps its records in out
	// failed is the first error of a write. Octets of a record are missing then,
	// of which TLS may not know, so nothing more is written.
	failed error
}

const (
	// wireReadBytes is the most that is read at a time: four full records.
	wireReadBytes = 64 << 10
	// wireWriteBytes is the most that is held back.
	wireWriteBytes = 256 << 10
)

func (w *wire) Read(p []byte) (int, error) {
	if w.r == w.w {
		if len(p) >= wireReadBytes {
			return w.Conn.Read(p)
		}
		if w.in == nil {
			w.in = make([]byte, wireReadBytes)
		}
		n, err := w.Conn.Read(w.in)
		if n <= 0 {
			return n, err
		}
		w.r, w.w = 0, n
	}
	n := copy(p, w.in[w.r:w.w])
	w.r += n
	return n, nil
}

func (w *wire) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed != nil {
		return 0, w.failed
	}
	if !w.holding {
		n, err := w.Conn.Write(p)
		w.failed = err
		return n, err
	}
	w.out = append(w.out, p...)
	if len(w.out) < wireWriteBytes {
		return len(p), nil
	}
	if err := w.flushLocked(); err != nil {
		return 0, err
	}
	return len(p), nil
}

// hold keeps what is written from now on until release.
func (w *wire) hold() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holding = true
}

// release writes what was held back.
func (w *wire) release() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.holding = false
	return w.flushLocked()
}

func (w *wire) flushLocked() error {
	if len(w.out) == 0 || w.failed != nil {
		w.out = w.out[:0]
		return w.failed
	}
	_, w.failed = w.Conn.Write(w.out)
	w.out = w.out[:0]
	return w.failed
}
