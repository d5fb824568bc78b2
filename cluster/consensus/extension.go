package consensus

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// An extension is what an entry says beside its command, in the Extensions of
// raft.Log:
//
//	if the entry counts in one term only:
//	  byte  0    version (2)
//	  bytes 1-8  the term, big endian
//	if it names a body, then: a mail.BodyRef, whose first byte is 1
//
// Nothing at all says neither.
type extension struct {
	// term, if not zero, is the only term in which the entry has an effect.
	// Appended in another, it is void on every node alike.
	term uint64
	body *mail.BodyRef // nil for none
}

const (
	extensionTermVersion = 2
	extensionTermBytes   = 1 + 8
)

var errExtension = errors.New("unreadable")

func (x extension) encode() []byte {
	if x == (extension{}) {
		return nil
	}
	b := make([]byte, 0, extensionTermBytes+mail.BodyRefBytes)
	if x.term != 0 {
		b = append(b, extensionTermVersion)
		b = binary.BigEndian.AppendUint64(b, x.term)
	}
	if x.body != nil {
		b = append(b, x.body.Encode()...)
	}
	return b
}

// extensionOf returns what an entry says beside its command. What cannot be read
// is an error: it may be the name of a body in the words of a newer version.
func extensionOf(l *raft.Log) (extension, error) {
	var x extension
	b := l.Extensions
	if len(b) == 0 {
		return x, nil
	}
	if l.Type != raft.LogCommand {
		return x, fmt.Errorf("entry %d: a %v with extensions", l.Index, l.Type)
	}
	if b[0] == extensionTermVersion {
		if len(b) < extensionTermBytes {
			return x, fmt.Errorf("entry %d: extensions of %d bytes: %w", l.Index, len(b), errExtension)
		}
		if x.term = binary.BigEndian.Uint64(b[1:extensionTermBytes]); x.term == 0 {
			return x, fmt.Errorf("entry %d: extensions with term 0: %w", l.Index, errExtension)
		}
		if b = b[extensionTermBytes:]; len(b) == 0 {
			return x, nil
		}
	}
	ref, err := mail.DecodeBodyRef(b)
	if err != nil {
		return extension{}, fmt.Errorf("entry %d: extensions: %w", l.Index, err)
	}
	x.body = &ref
	return x, nil
}

// bodyOf returns the body that an entry names, nil for none, void entries
// included: the append rule is about what stands in the log.
func bodyOf(l *raft.Log) (*mail.BodyRef, error) {
	x, err := extensionOf(l)
	return x.body, err
}
