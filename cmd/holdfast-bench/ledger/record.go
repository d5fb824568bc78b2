package ledger

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// A MessageID is the unique marker of one message of a run. It consists of
// lower-case letters, digits and '-', so that it can stand in a local part and
// survives software that folds case.
type MessageID string

// Header is the field that carries the marker in messages that have room for
// one. It is for people who read a message; the check joins by recipient.
const Header = "X-Holdfast-Ledger"

// Recipient makes the address of one recipient of message id. Each pair of a
// run has an address of its own: who tells the recipients of a message apart.
func Recipient(who string, id MessageID, domain string) string {
	return who + "+" + string(id) + "@" + domain
}

// MarkerOf finds the marker in an address made by Recipient.
func MarkerOf(address string) (MessageID, bool) {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return "", false
	}
	plus := strings.LastIndexByte(address[:at], '+')
	if plus < 0 || plus+1 == at {
		return "", false
	}
	return MessageID(strings.ToLower(address[plus+1 : at])), true
}

// A Digest is a SHA-256 in hexadecimal, as it stands in the file.
type Digest string

// DigestOf hashes the octets of a message.
func DigestOf(parts ...[]byte) Digest {
	h := sha256.New()
	for _, p := range parts {
		h.Write(p)
	}
	return Digest(hex.EncodeToString(h.Sum(nil)))
}

// Octets names a message's content: how many octets, and which.
type Octets struct {
	Size   int64  `json:"size"`
	SHA256 Digest `json:"sha256"`
}

func (o Octets) String() string {
	d := o.SHA256
	if len(d) > 12 {
		d = d[:12]
	}
	return fmt.Sprintf("%d octets %s", o.Size, d)
}

// An Intent says that a sender is about to write the final dot of a message
// to a target. It is recorded before the dot, so that no reply can exist
// without one. Attempt numbers the attempts of one message, from 1.
type Intent struct {
	ID          MessageID `json:"id"`
	Attempt     int       `json:"attempt"`
	ReversePath string    `json:"reverse_path"`
	Recipients  []string  `json:"recipients"`
	Octets      Octets    `json:"octets"`
	Target      string    `json:"target,omitempty"`
	// Notify is the parameter of RFC 3461 that each recipient had, "" for none;
	// Automatic says that the header is one of a list's or of automatic mail.
	Notify    string    `json:"notify,omitempty"`
	Automatic bool      `json:"automatic,omitempty"`
	At        time.Time `json:"at"`
}

// A Result is what a sender knows about one attempt for one recipient.
type Result string

const (
	// OK: a 250 to the final dot. Responsibility has passed.
	OK Result = "ok"
	// Fail: a 4yz or 5yz to RCPT, DATA or the final dot. The receiver must
	// not deliver what it refused.
	Fail Result = "fail"
	// Info: no reply to the final dot. Nobody knows; the sender tries again.
	Info Result = "info"
)

// An Outcome says how one attempt ended for some of a message's recipients.
// QueueID is what the 250 named, Reply the reply's text, or the error.
type Outcome struct {
	ID         MessageID `json:"id"`
	Attempt    int       `json:"attempt"`
	Recipients []string  `json:"recipients"`
	Result     Result    `json:"result"`
	QueueID    string    `json:"queue_id,omitempty"`
	Reply      string    `json:"reply,omitempty"`
	At         time.Time `json:"at"`
}

// An Arrival says that a primary took a message for one recipient.
//
// The receiver does not know how many of the leading Received fields are trace
// that was added on the way and how many the sender wrote itself, so it
// records what the message is with none of them stripped, with one, and so on:
// Cuts. The message is intact when one of the cuts is what was sent, which
// says also that all in front of it is whole Received fields.
type Arrival struct {
	Recipient   string   `json:"recipient"`
	ReversePath string   `json:"reverse_path"`
	Cuts        []Octets `json:"cuts"`
	// Notify is the parameter of RFC 3461 that it came with, nil where the receiver does
	// not tell.
	Notify *string `json:"notify,omitempty"`
	// QueueID is what the topmost Received field says after "id".
	QueueID string    `json:"queue_id,omitempty"`
	Peer    string    `json:"peer,omitempty"`
	At      time.Time `json:"at"`
}

// An Unread says that a primary took a message for a recipient and that nothing
// more came on that connection: nobody can know whether the 250 was read, and the
// recipient may get another copy (RFC 1047).
//
// Arrived is when that copy came, as the Arrival says. Without it, any of the copies may
// be meant.
type Unread struct {
	Recipient string    `json:"recipient"`
	QueueID   string    `json:"queue_id,omitempty"`
	Arrived   time.Time `json:"arrived,omitzero"`
	At        time.Time `json:"at"`
}

// A Refusal says that a primary refused a recipient for good.
type Refusal struct {
	Recipient string    `json:"recipient"`
	Reply     string    `json:"reply,omitempty"`
	Peer      string    `json:"peer,omitempty"`
	At        time.Time `json:"at"`
}

// A Notice says that somebody took a report that tells To what became of one
// recipient of his message (RFC 3464).
type Notice struct {
	Recipient   string `json:"recipient"`
	Action      string `json:"action"`
	ReversePath string `json:"reverse_path"` // of the report
	To          string `json:"to"`
	// Original is the queue id of the message, QueueID that of the report.
	Original string    `json:"original,omitempty"`
	QueueID  string    `json:"queue_id,omitempty"`
	Peer     string    `json:"peer,omitempty"`
	At       time.Time `json:"at"`
}

// A Held says that a recipient was seen to be held for an operator, when all was done
// that could be.
type Held struct {
	Recipient string    `json:"recipient"`
	QueueID   string    `json:"queue_id,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	At        time.Time `json:"at"`
}

// A record is one line of the file: exactly one of these is set.
type record struct {
	Refusal *Refusal `json:"refusal,omitempty"`
	Notice  *Notice  `json:"notice,omitempty"`
	Held    *Held    `json:"held,omitempty"`
	Unread  *Unread  `json:"unread,omitempty"`
	Intent  *Intent  `json:"intent,omitempty"`
	Outcome *Outcome `json:"outcome,omitempty"`
	Arrival *Arrival `json:"arrival,omitempty"`
}
