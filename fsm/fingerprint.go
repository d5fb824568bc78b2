package fsm

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A fingerprint says when two Accepts are the same message sent twice: the
// SHA-256 over the reverse-path, the forward-paths in sorted order each with
// its NOTIFY and ORCPT, RET, ENVID, 8BITMIME, SMTPUTF8, and size and digest of
// the body. Whatever the next hop would see differently is in it, else the
// first copy's would win.
//
// Invariant: a fingerprint that is kept is that of a message which is known and
// unsettled, every recipient of which is queued, held or delivered.
type fingerprint [sha256.Size]byte

type printItem struct {
	print fingerprint
	entry Index
}

func (a printItem) less(b printItem) bool { return bytes.Compare(a.print[:], b.print[:]) < 0 }

func fingerprintOf(e mail.Envelope, b mail.BodyRef) fingerprint {
	w := make([]byte, 0, 512) // on the stack, for nearly all mail
	w = appendMailbox(w, canonical(e.From.Mailbox))
	w = appendNumber(w, uint64(e.Return))
	w = appendLengthened(w, e.EnvelopeID)
	w = appendNumber(w, flag(e.EightBit))
	w = appendNumber(w, flag(e.SMTPUTF8))
	recipients := e.Recipients
	if len(recipients) > 1 {
		recipients = sortedRecipients(recipients)
	}
	w = appendNumber(w, uint64(len(recipients)))
	for _, r := range recipients {
		w = appendMailbox(w, canonical(r.Path.Mailbox))
		w = appendNumber(w, uint64(r.Notify))
		w = appendLengthened(w, r.Original)
	}
	w = appendNumber(w, uint64(b.Size))
	w = append(w, b.Digest[:]...)
	return sha256.Sum256(w)
}

// sortedRecipients returns a copy, in the order of the canonical paths.
func sortedRecipients(recipients []mail.Recipient) []mail.Recipient {
	recipients = slices.Clone(recipients)
	for i := range recipients {
		recipients[i].Path.Mailbox = canonical(recipients[i].Path.Mailbox)
	}
	slices.SortFunc(recipients, func(a, b mail.Recipient) int {
		if c := strings.Compare(a.Path.Local, b.Path.Local); c != 0 {
			return c
		}
		return strings.Compare(a.Path.Host, b.Path.Host)
	})
	return recipients
}

// canonical returns a mailbox with its host in the one form in which hosts are
// compared.
func canonical(m mail.Mailbox) mail.Mailbox {
	if d := m.Domain(); d != "" {
		m.Host = string(d)
	} else {
		m.Host = strings.ToLower(m.Host)
	}
	return m
}

func appendMailbox(w []byte, m mail.Mailbox) []byte {
	return appendLengthened(appendLengthened(w, m.Local), m.Host)
}

// appendLengthened writes the length first, so that no two lists of texts run
// together to the same octets.
func appendLengthened(w []byte, t string) []byte {
	return append(appendNumber(w, uint64(len(t))), t...)
}

func appendNumber(w []byte, n uint64) []byte { return binary.BigEndian.AppendUint64(w, n) }

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// repeated returns the message that an Accept with this fingerprint repeats.
func (s *State) repeated(f fingerprint) (*message, bool) {
	p, ok := s.prints.get(printItem{print: f})
	if !ok {
		return nil, false
	}
	m, ok := s.message(p.entry)
	if !ok || m.settled || !(m.matches() || s.waived.matchAnyState) {
		return nil, false
	}
	return m, true
}

// matches reports whether a 250 that names m would be true for a repeat: no
// recipient has failed or been removed.
func (m *message) matches() bool {
	for _, n := range m.notes() {
		if n.state == RecipientFailed || n.state == RecipientRemoved {
			return false
		}
	}
	return true
}

// keepFingerprint remembers the fingerprint of a new message, in the place of
// an older one with the same.
func (s *State) keepFingerprint(f fingerprint, entry Index) {
	if old, ok := s.prints.get(printItem{print: f}); ok {
		s.printed.remove(old)
	}
	s.prints.set(printItem{f, entry})
	s.printed.set(printItem{f, entry})
	s.boundFingerprints()
}

// dropFingerprint forgets the fingerprint of m, if it still points at m.
func (s *State) dropFingerprint(m *message) {
	p, ok := s.printed.get(printItem{entry: m.entry})
	if !ok {
		return
	}
	s.printed.remove(p)
	s.prints.remove(p)
}

// boundFingerprints drops the oldest fingerprints above the limit. Clients that
// send QUIT behind the dot leave nearly all their mail unsettled, so the number
// is bounded as well as the time.
func (s *State) boundFingerprints() {
	for s.printed.len() > s.settings.FingerprintMax {
		oldest, _ := s.printed.first()
		m, _ := s.message(oldest.entry)
		s.dropFingerprint(m)
		s.totals.FingerprintsDropped++
	}
}

// ageFingerprints drops those whose time is over. They stand in the order of
// their entries, which is that of log time.
func (s *State) ageFingerprints() {
	for {
		oldest, ok := s.printed.first()
		if !ok {
			return
		}
		m, _ := s.message(oldest.entry)
		if s.sealed.get(m.slot).at()+s.settings.FingerprintLife > s.now {
			return
		}
		s.dropFingerprint(m)
	}
}
