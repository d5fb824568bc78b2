package consensus

import "errors"

// What one request, or one answer, may cost before it is decoded. Raft's
// decoder has no bound of its own: it takes whatever length is announced and
// sent, and makes an entry of a hundred octets out of each octet that says
// "empty map".
const (
	// requestBytesMax is the most octets of one request or answer. The greatest
	// that a member sends is appendBytesMax of entries.
	requestBytesMax = 4 * appendBytesMax
	// requestValuesMax is the most values in one, down to the last number. An
	// entry is 13: six fields with their names, and itself.
	requestValuesMax = 32 * entriesReceivedMax
)

// errOversized is why a connection is closed.
var errOversized = errors.New("a peer sends more than a request or an answer may be")

// kindInstallSnapshot is the octet before a request to install a snapshot
// (net_transport.go:25). The snapshot's data follows the request.
const kindInstallSnapshot = 2

// A meter follows the octets that a peer sends, before the decoder sees them,
// and counts them and the values that they announce. It knows of msgpack what
// it takes to find the end of a message.
//
// The data of a snapshot is not counted as a part of its request, since it
// goes to the disk and not into memory; it has its own bound.
//
// Invariant: a message is over when pending, skip and sizing are zero.
type meter struct {
	requests bool // a message is a request: one octet before it says its kind

	kind    byte
	kinded  bool   // the kind of the message that has begun is known
	pending uint64 // values that are still to begin in this message
	skip    uint64 // octets of the value that has begun
	sizing  int    // octets of its length
	size    uint64 // what they say so far
	sized   shape  // what has that length

	octets, values uint64 // since the last start
	data           uint64 // of a snapshot
	inData         bool   // what comes is the data of a snapshot
}

// A shape is what the length of a value counts.
type shape int

const (
	inOctets    shape = iota // strings and binaries
	inExtension              // octets, and one for the type before them
	inElements
	inPairs
)

// start begins the count anew: there was an answer, or a new request.
func (m *meter) start() { m.octets, m.values = 0, 0 }

// take follows the octets. After an error it must not be used any more.
func (m *meter) take(p []byte) error {
	for len(p) > 0 {
		if m.inData {
			// The reader behind us reads ahead by less than a request.
			if m.data += uint64(len(p)); m.data > snapshotBytesMax+requestBytesMax {
				return errOversized
			}
			return nil
		}
		n := uint64(1)
		switch {
		case m.skip > 0:
			n = min(m.skip, uint64(len(p)))
			m.skip -= n
		case m.sizing > 0:
			m.size = m.size<<8 | uint64(p[0])
			if m.sizing--; m.sizing == 0 {
				m.measure(m.sized, m.size)
			}
		case m.pending == 0 && m.requests && !m.kinded:
			m.kind, m.kinded, m.pending = p[0], true, 1
		default:
			if m.pending == 0 {
				m.pending = 1
			}
			m.values++
			m.pending--
			m.begin(p[0])
		}
		p = p[n:]
		m.octets += n
		// What is announced counts before it comes.
		if m.octets+m.skip > requestBytesMax || m.values+m.pending > requestValuesMax {
			return errOversized
		}
		if m.pending == 0 && m.skip == 0 && m.sizing == 0 {
			m.inData = m.requests && m.kind == kindInstallSnapshot
			m.kinded = false
		}
	}
	return nil
}

// begin takes the first octet of a value.
func (m *meter) begin(b byte) {
	switch {
	case b <= 0x7f || b >= 0xe0: // small numbers
	case b <= 0x8f:
		m.measure(inPairs, uint64(b&0x0f))
	case b <= 0x9f:
		m.measure(inElements, uint64(b&0x0f))
	case b <= 0xbf:
		m.measure(inOctets, uint64(b&0x1f))
	case b <= 0xc3: // nil, false, true, and one that the decoder refuses
	case b <= 0xc6:
		m.announce(inOctets, 1<<(b-0xc4))
	case b <= 0xc9:
		m.announce(inExtension, 1<<(b-0xc7))
	case b <= 0xcb: // floats of 4 and 8
		m.skip = 4 << (b - 0xca)
	case b <= 0xcf: // unsigned of 1, 2, 4, 8
		m.skip = 1 << (b - 0xcc)
	case b <= 0xd3: // signed of 1, 2, 4, 8
		m.skip = 1 << (b - 0xd0)
	case b <= 0xd8: // extensions of 1, 2, 4, 8, 16
		m.measure(inExtension, 1<<(b-0xd4))
	case b <= 0xdb:
		m.announce(inOctets, 1<<(b-0xd9))
	case b <= 0xdd:
		m.announce(inElements, 2<<(b-0xdc))
	default:
		m.announce(inPairs, 2<<(b-0xde))
	}
}

// announce says in how many octets the length of the value follows.
func (m *meter) announce(s shape, octets int) { m.sized, m.sizing, m.size = s, octets, 0 }

// measure adds what belongs to the value that has begun.
func (m *meter) measure(s shape, length uint64) {
	switch s {
	case inOctets:
		m.skip = length
	case inExtension:
		m.skip = length + 1
	case inElements:
		m.pending += length
	case inPairs:
		m.pending += 2 * length
	}
}
