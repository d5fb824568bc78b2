package fsm

import (
	"bufio"
	"compress/flate"
	"crypto/sha256"
	"fmt"
	"io"

	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// snapshotVersion is the greatest version that Encode writes and Decode reads.
// Encode writes version 1 until a start is recorded, version 3 until waits are
// bounded, version 4 until a domain has a schedule or a ceiling, version 5 until
// something is reported to senders, and version 6 where no domain has callers, nor a
// next hop that refuses a node: all that a newer version can say came with a command
// that every voter can apply, and who can apply it reads that version.
const snapshotVersion = 7

// snapshotCompressed is the first version that is compressed behind its header.
const snapshotCompressed = 3

// snapshotBufferBytes is the buffer on either side of the compression.
const snapshotBufferBytes = 64 << 10

// Encode writes the whole State. The same State gives the same bytes, and it
// is written record by record, so that the memory it takes does not grow with
// the queue. The format is queuepb.SnapshotRecord's.
//
// It is compressed, at the least effort, since a node writes its whole queue
// again and again.
//
// Only messages, their origins, aliases, domains and leases are written; every
// index follows from them.
func (s *State) Encode(w io.Writer) error { return s.encode(w, true) }

// Digest is the SHA-256 of what Encode writes, before it is compressed. States that
// have applied the same entries have the same one, on nodes of one version.
func (s *State) Digest() [sha256.Size]byte {
	h := sha256.New()
	_ = s.encode(h, false) // a hash takes everything
	return [sha256.Size]byte(h.Sum(nil))
}

func (s *State) encode(w io.Writer, compress bool) error {
	version := uint32(1)
	switch {
	case s.called(), s.refusing():
		version = snapshotVersion
	case s.reporting():
		version = 6
	case s.scheduled():
		version = 5
	case s.settings.WaitsPerEntry > 0 || s.endings.len() > 0:
		version = 4
	case s.starts.len() > 0:
		version = snapshotCompressed
	}
	e := &encoder{s: s, version: version, w: bufio.NewWriterSize(w, snapshotBufferBytes), origins: make(map[origin]uint32)}
	finish := []func() error{e.w.Flush}
	t := s.totals
	e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Header{Header: &queuepb.SnapshotHeader{
		Version:    version,
		Applied:    uint64(s.applied),
		Now:        int64(s.now),
		Settings:   settingsToProto(s.settings),
		DomainLast: uint32(s.domainLast),

		SweptDomain: uint32(s.swept.domain),
		SweptKey:    uint64(s.swept.key),
		Counters: &queuepb.Counters{
			Accepted:            t.Accepted,
			Repeats:             t.Repeats,
			Delivered:           t.Delivered,
			Removed:             t.Removed,
			FingerprintsDropped: t.FingerprintsDropped,
			DoubtsReported:      t.DoubtsReported,
			DoubtsExpired:       t.DoubtsExpired,
			DeliveredLate:       t.DeliveredLate,
			ReportsIgnored:      t.ReportsIgnored,
			Expired:             t.Expired,
			Failed:              t.Failed,
			Reports:             t.Reports,
			ReportsDropped:      t.ReportsDropped,
		},
	}}})
	if compress && version >= snapshotCompressed {
		plain := e.w
		compressor, err := flate.NewWriter(plain, flate.BestSpeed)
		if err != nil {
			return fmt.Errorf("encode queue: %w", err)
		}
		e.w = bufio.NewWriterSize(compressor, snapshotBufferBytes)
		finish = []func() error{e.w.Flush, compressor.Close, plain.Flush}
	}
	for d := range s.domains.all() {
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Domain{Domain: d.toProto()}})
	}
	for m := range s.messagesFrom(0) {
		e.message(&m)
	}
	for a := range s.aliases.all() {
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Alias{
			Alias: &queuepb.AliasRecord{Entry: uint64(a.entry), Id: a.id[:]},
		}})
	}
	for l := range s.leases.all() {
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Lease{Lease: &queuepb.LeaseRecord{
			Token: uint64(l.token), Holder: string(l.holder), Domain: uint32(l.domain), Renewal: uint64(l.renewal),
		}}})
	}
	for n := range s.starts.all() {
		e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Start{Start: &queuepb.StartRecord{
			Server: string(n.server), Number: n.number, Entry: uint64(n.entry),
		}}})
	}
	e.known()
	e.write(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_End{End: &queuepb.SnapshotEnd{Records: e.records}}})
	for _, flush := range finish {
		if e.err == nil {
			e.err = flush()
		}
	}
	if e.err != nil {
		return fmt.Errorf("encode queue: %w", e.err)
	}
	return nil
}

// scheduled reports whether a domain has what only version 5 can say.
func (s *State) scheduled() bool {
	for d := range s.domains.all() {
		if d.config.newer() {
			return true
		}
	}
	return s.totals.Expired > 0
}

// Decode reads what Encode wrote. A snapshot that is cut short, damaged so that
// it contradicts itself, or of another version is an error.
func Decode(r io.Reader) (*State, error) {
	s, err := decode(bufio.NewReaderSize(r, 64<<10))
	if err != nil {
		return nil, fmt.Errorf("decode queue: %w", err)
	}
	return s, nil
}

func decode(r *bufio.Reader) (*State, error) {
	d := decoder{s: New(), r: r}
	d.message.Message = new(queuepb.MessageRecord)
	for {
		p, err := d.read()
		if err != nil {
			return nil, fmt.Errorf("record %d: %w", d.records, err)
		}
		if _, is := p.GetRecord().(*queuepb.SnapshotRecord_Header); is != (d.records == 0) {
			return nil, fmt.Errorf("record %d: header out of place", d.records)
		}
		if end := p.GetEnd(); end != nil {
			if end.GetRecords() != d.records {
				return nil, fmt.Errorf("%d records, want %d", d.records, end.GetRecords())
			}
			if err := d.close(); err != nil {
				return nil, err
			}
			return d.s, d.s.checkLeases()
		}
		if err := d.load(p); err != nil {
			return nil, fmt.Errorf("record %d: %w", d.records, err)
		}
		d.records++
	}
}
