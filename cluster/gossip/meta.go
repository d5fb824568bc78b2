package gossip

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/memberlist"
)

// Meta is what a member says of itself. Whoever has the gossip key can say
// anything; it is a hint.
type Meta struct {
	Incarnation    string // the second part of its server id
	ClusterAddr    string // host:port of its TLS port
	HasState       bool   // its data directory has a Raft log, or once had
	CommandVersion uint32 // the newest command that it can apply
	Sees           string // a digest of whom it sees, for the first boot
	// How it appears in SMTP, so that no node sends mail for a primary to
	// another one of us.
	Hostname string
	SMTP     []string // IP:port

	// leaving is the last thing that a member says. memberlist tells events of
	// the failed and of those that left apart in a field that it never sets
	// (v0.7.0: state.go:78 shadows state.go:49).
	leaving bool
}

// ErrMeta: the Meta cannot be gossiped: it takes more than MetaBytesMax, or a
// field more than 255 bytes; or it was received and cannot be read.
var ErrMeta = errors.New("member's description")

// MetaBytesMax is the most that an encoded Meta may take. memberlist panics
// over it.
const MetaBytesMax = memberlist.MetaMaxSize

// The encoding of Meta:
//
//	byte 0   version (1)
//	byte 1   flags: 1 = HasState, 2 = leaving
//	         CommandVersion as uvarint
//	         Incarnation, ClusterAddr, Sees, Hostname, each behind a byte of length
//	         a byte of count, and as many SMTP addresses, each behind a byte of length
//
// What follows is ignored: a newer node may say more.
const (
	metaVersion  = 1
	metaHasState = 1
	metaLeaving  = 2
)

func (m Meta) encode() ([]byte, error) {
	b := []byte{metaVersion, 0}
	if m.HasState {
		b[1] |= metaHasState
	}
	if m.leaving {
		b[1] |= metaLeaving
	}
	b = binary.AppendUvarint(b, uint64(m.CommandVersion))
	texts := append([]string{m.Incarnation, m.ClusterAddr, m.Sees, m.Hostname}, m.SMTP...)
	for i, s := range texts {
		if len(s) > 255 || len(m.SMTP) > 255 {
			return nil, fmt.Errorf("%w: a field of %d bytes, at most 255", ErrMeta, len(s))
		}
		if i == 4 {
			b = append(b, byte(len(m.SMTP)))
		}
		b = append(b, byte(len(s)))
		b = append(b, s...)
	}
	if len(m.SMTP) == 0 {
		b = append(b, 0)
	}
	if len(b) > MetaBytesMax {
		return nil, fmt.Errorf("%w: %d bytes, at most %d: shorten the host name or list fewer SMTP addresses", ErrMeta, len(b), MetaBytesMax)
	}
	return b, nil
}

func decodeMeta(b []byte) (Meta, error) {
	short := fmt.Errorf("%w: cut short", ErrMeta)
	if len(b) < 2 {
		return Meta{}, short
	}
	if b[0] != metaVersion {
		return Meta{}, fmt.Errorf("%w: version %d", ErrMeta, b[0])
	}
	m := Meta{HasState: b[1]&metaHasState != 0, leaving: b[1]&metaLeaving != 0}
	version, n := binary.Uvarint(b[2:])
	if n <= 0 || version > 1<<32-1 {
		return Meta{}, short
	}
	m.CommandVersion = uint32(version)
	b = b[2+n:]
	next := func() (string, bool) {
		if len(b) == 0 || len(b) <= int(b[0]) {
			return "", false
		}
		s := string(b[1 : 1+b[0]])
		b = b[1+int(b[0]):]
		return s, true
	}
	for _, field := range []*string{&m.Incarnation, &m.ClusterAddr, &m.Sees, &m.Hostname} {
		s, ok := next()
		if !ok {
			return Meta{}, short
		}
		*field = s
	}
	if len(b) == 0 {
		return Meta{}, short
	}
	count := b[0]
	b = b[1:]
	for range count {
		s, ok := next()
		if !ok {
			return Meta{}, short
		}
		m.SMTP = append(m.SMTP, s)
	}
	return m, nil
}
