package mail

import "fmt"

// An EnhancedCode is class, subject and detail of RFC 3463. The zero value
// means that none was given.
type EnhancedCode [3]int

// A Reply is one SMTP reply, ours or a next hop's, as a value: a refused mail is
// not an error. Text holds no CR or LF; the lines of a multi-line reply are
// joined by a space.
type Reply struct {
	Code     int
	Enhanced EnhancedCode
	Text     string
}

// Positive reports a 2yz reply (RFC 5321 section 4.2.1).
func (r Reply) Positive() bool { return r.Code/100 == 2 }

// Transient reports a 4yz reply: the same command may succeed later.
func (r Reply) Transient() bool { return r.Code/100 == 4 }

// Permanent reports a 5yz reply.
func (r Reply) Permanent() bool { return r.Code/100 == 5 }

// String returns the reply as it stands on the wire, without the line end.
func (r Reply) String() string {
	if r.Enhanced == (EnhancedCode{}) {
		return fmt.Sprintf("%03d %s", r.Code, r.Text)
	}
	return fmt.Sprintf("%03d %d.%d.%d %s", r.Code, r.Enhanced[0], r.Enhanced[1], r.Enhanced[2], r.Text)
}
