package fsm

import (
	"encoding/binary"
	"errors"
	"unicode/utf8"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A sealed is what never changes about a message, but its origin, in one
// row of octets: a tenth of the heap that the envelope would take, nothing for the
// garbage collector to look into (see blocks), and the form in which snapshots hold it.
//
//	octets  field
//	1       form, 1
//	32      digest of the body
//	number  octets of the body
//	number  log time of the Accept
//	number  Trace.Received
//	1       bit 0: 8BITMIME, 1: SMTPUTF8, 2 and 3: RET
//	text    ENVID
//	text    reverse-path, local part     both empty for the null path
//	text    reverse-path, host
//	text    Trace.Hello
//	text    Trace.Client: 0, 4 or 16 octets, or 16 and a zone
//	number  of recipients, and for each:
//	  1     bits 0 to 3: NOTIFY, 4: a domain follows, 5: ORCPT follows
//	  text  forward-path, local part
//	  text  forward-path, host
//	  text  relay domain                 absent where it equals the host
//	  text  ORCPT                        absent where it is empty
//
// A number is a varint of up to ten octets (negative numbers as two's
// complement), a text is a number of octets and that many octets of UTF-8.
// Nothing follows the last recipient. A form that is not 1 is a later version's,
// and refused.
type sealed []byte

const sealedForm = 1

// Where in a sealed the digest and the size begin.
const (
	sealedDigest = 1
	sealedSize   = sealedDigest + len(mail.Digest{})
)

// Bits of a sealed envelope and of a sealed recipient.
const (
	sealedEightBit    = 1 << 0
	sealedSMTPUTF8    = 1 << 1
	sealedReturnShift = 2
	sealedFlags       = 1<<4 - 1

	sealedNotify         = 1<<4 - 1
	sealedDomain         = 1 << 4
	sealedOriginal       = 1 << 5
	sealedRecipientFlags = 1<<6 - 1
)

// sealedRecipientBytesMin is the length of the shortest recipient.
const sealedRecipientBytesMin = 3

// seal encodes what never changes about a message.
func seal(e mail.Envelope, b mail.BodyRef, at Millis) sealed {
	w := make([]byte, 0, 256)
	w = append(w, sealedForm)
	w = append(w, b.Digest[:]...)
	w = binary.AppendUvarint(w, uint64(b.Size))
	w = binary.AppendUvarint(w, uint64(at))
	w = binary.AppendUvarint(w, uint64(e.Trace.Received))
	flags := byte(e.Return) << sealedReturnShift
	if e.EightBit {
		flags |= sealedEightBit
	}
	if e.SMTPUTF8 {
		flags |= sealedSMTPUTF8
	}
	w = append(w, flags)
	w = appendText(w, e.EnvelopeID)
	w = appendText(w, e.From.Local)
	w = appendText(w, e.From.Host)
	w = appendText(w, e.Trace.Hello)
	client, _ := e.Trace.Client.MarshalBinary() // never fails
	w = binary.AppendUvarint(w, uint64(len(client)))
	w = append(w, client...)
	w = binary.AppendUvarint(w, uint64(len(e.Recipients)))
	for _, r := range e.Recipients {
		flags := byte(r.Notify)
		if string(r.Domain) != r.Path.Host {
			flags |= sealedDomain
		}
		if r.Original != "" {
			flags |= sealedOriginal
		}
		w = append(w, flags)
		w = appendText(w, r.Path.Local)
		w = appendText(w, r.Path.Host)
		if flags&sealedDomain != 0 {
			w = appendText(w, string(r.Domain))
		}
		if flags&sealedOriginal != 0 {
			w = appendText(w, r.Original)
		}
	}
	return w
}

func appendText(w []byte, t string) []byte {
	return append(binary.AppendUvarint(w, uint64(len(t))), t...)
}

// unsealed is what seal was given. The queue id and the origin are elsewhere.
type unsealed struct {
	envelope mail.Envelope
	body     mail.BodyRef
	at       Millis
}

var (
	errSealedForm  = errors.New("sealed envelope in an unknown form")
	errSealedShort = errors.New("sealed envelope that is cut short")
	errSealedLong  = errors.New("sealed envelope with something behind it")
	errSealedText  = errors.New("sealed envelope with text that is not UTF-8")
)

// open decodes. The texts share memory, but not that of s.
func (s sealed) open() (unsealed, error) {
	r := opener{rest: string(s)}
	if r.octet() != sealedForm {
		return unsealed{}, errSealedForm
	}
	var u unsealed
	copy(u.body.Digest[:], r.octets(len(u.body.Digest)))
	u.body.Size = mail.ByteSize(r.number())
	u.at = Millis(r.number())
	e := &u.envelope
	e.Trace.Received = int64(r.number())
	flags := r.octet()
	e.EightBit, e.SMTPUTF8 = flags&sealedEightBit != 0, flags&sealedSMTPUTF8 != 0
	e.Return = mail.Return(flags >> sealedReturnShift)
	if flags&^sealedFlags != 0 || e.Return > mail.ReturnHeaders {
		return unsealed{}, errSealedForm
	}
	e.EnvelopeID = r.text()
	e.From.Local, e.From.Host = r.text(), r.text()
	e.Trace.Hello = r.text()
	if client := r.octets(r.length()); client != "" {
		if err := e.Trace.Client.UnmarshalBinary([]byte(client)); err != nil {
			return unsealed{}, err
		}
	}
	n := r.number()
	if n > uint64(len(r.rest)/sealedRecipientBytesMin) {
		return unsealed{}, errSealedShort
	}
	e.Recipients = make([]mail.Recipient, n)
	for i := range e.Recipients {
		to, flags := &e.Recipients[i], r.octet()
		if flags&^sealedRecipientFlags != 0 {
			return unsealed{}, errSealedForm
		}
		to.Notify = mail.Notify(flags & sealedNotify)
		to.Path.Local, to.Path.Host = r.text(), r.text()
		to.Domain = mail.Domain(to.Path.Host)
		if flags&sealedDomain != 0 {
			to.Domain = mail.Domain(r.text())
		}
		if flags&sealedOriginal != 0 {
			to.Original = r.text()
		}
	}
	if r.err == nil && r.rest != "" {
		r.err = errSealedLong
	}
	return u, r.err
}

// body returns the digest and the size of the body, without the rest.
func (s sealed) body() (digest mail.Digest, size mail.ByteSize) {
	copy(digest[:], s[min(sealedDigest, len(s)):])
	size, _ = s.sizeAndAt()
	return digest, size
}

// size returns the octets of the body, without the rest.
func (s sealed) size() mail.ByteSize {
	size, _ := s.sizeAndAt()
	return size
}

// at returns the log time of the Accept, without the rest.
func (s sealed) at() Millis {
	_, at := s.sizeAndAt()
	return at
}

// sizeAndAt reads the two numbers behind the digest; zero where they are cut short.
func (s sealed) sizeAndAt() (mail.ByteSize, Millis) {
	rest := s[min(sealedSize, len(s)):]
	size, n := number(rest)
	at, _ := number(rest[n:])
	return mail.ByteSize(size), Millis(at)
}

// number reads a number, and returns how many octets it has: none where it is cut
// short.
func number[T ~string | ~[]byte](b T) (n uint64, octets int) {
	for i := range min(len(b), binary.MaxVarintLen64) {
		n |= uint64(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			return n, i + 1
		}
	}
	return 0, 0
}

// An opener reads a sealed up to the first error.
type opener struct {
	rest string
	err  error
}

func (r *opener) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.rest = ""
}

func (r *opener) octet() byte {
	if r.rest == "" {
		r.fail(errSealedShort)
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *opener) octets(n int) string {
	if n > len(r.rest) {
		r.fail(errSealedShort)
		return ""
	}
	t := r.rest[:n]
	r.rest = r.rest[n:]
	return t
}

func (r *opener) number() uint64 {
	n, octets := number(r.rest)
	if octets == 0 {
		r.fail(errSealedShort)
		return 0
	}
	r.rest = r.rest[octets:]
	return n
}

// length reads a number of octets that must be there.
func (r *opener) length() int {
	n := r.number()
	if n > uint64(len(r.rest)) {
		r.fail(errSealedShort)
		return 0
	}
	return int(n)
}

func (r *opener) text() string {
	t := r.octets(r.length())
	if !utf8.ValidString(t) {
		r.fail(errSealedText)
		return ""
	}
	return t
}
