package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"hash"
)

// cutsMax bounds the Received fields that a Cutter strips, and so the number
// of digests it computes side by side.
const cutsMax = 6

// traceMax bounds the octets of the first Received field that a Cutter keeps
// in order to find the queue id in it.
const traceMax = 4 << 10

// A Cutter reads a message line by line as it arrives and computes what an
// Arrival needs: size and digest behind each of the leading Received fields.
// It keeps no content. The zero value is ready for use.
type Cutter struct {
	cuts    []*cut
	past    bool // the leading Received fields have ended
	started bool
	trace   []byte // the first Received field, up to traceMax
}

type cut struct {
	size int64
	hash hash.Hash
}

// Line takes the next line, with its CRLF, dots unstuffed. A long line may
// come in pieces; only the first of them may have begins set.
func (c *Cutter) Line(line []byte, begins bool) {
	if begins && !c.past {
		c.boundary(line)
	}
	if !c.past && len(c.cuts) == 1 && len(c.trace) < traceMax {
		c.trace = append(c.trace, line[:min(len(line), traceMax-len(c.trace))]...)
	}
	for _, k := range c.cuts {
		k.size += int64(len(line))
		k.hash.Write(line)
	}
}

// boundary decides whether a cut lies in front of a line that begins here.
func (c *Cutter) boundary(line []byte) {
	if c.started && len(line) > 0 && (line[0] == ' ' || line[0] == '\t') {
		return // the folded rest of a Received field
	}
	c.started = true
	c.cuts = append(c.cuts, &cut{hash: sha256.New()})
	if !isReceived(line) || len(c.cuts) > cutsMax {
		c.past = true
	}
}

func isReceived(line []byte) bool {
	const name = "received:"
	if len(line) < len(name) {
		return false
	}
	for i := range name {
		b := line[i]
		if 'A' <= b && b <= 'Z' {
			b += 'a' - 'A'
		}
		if b != name[i] {
			return false
		}
	}
	return true
}

// Finish returns the cuts. A message that consists of Received fields only has
// an empty last cut: trace in front of an empty message.
func (c *Cutter) Finish() []Octets {
	if !c.past {
		c.cuts = append(c.cuts, &cut{hash: sha256.New()})
		c.past = true
	}
	cuts := make([]Octets, len(c.cuts))
	for i, k := range c.cuts {
		cuts[i] = Octets{Size: k.size, SHA256: Digest(hex.EncodeToString(k.hash.Sum(nil)))}
	}
	return cuts
}

// QueueID returns the word after "id" in the first Received field, or "".
// RFC 5321 section 4.4: the clause "id" names the message at the host that
// wrote the field.
func (c *Cutter) QueueID() string {
	var prev string
	for word := range fields(c.trace) {
		if prev == "id" {
			return trimClause(word)
		}
		prev = word
	}
	return ""
}
