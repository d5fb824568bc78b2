package mail

import "net/netip"

// An Envelope is everything about a message but its octets: who sent it, to
// whom, with which extension parameters, and what the trace field will say.
//
// Invariant: Recipients is not empty, has no two entries with the same path,
// and keeps the order of the RCPT commands.
type Envelope struct {
	From       ReversePath
	Recipients []Recipient
	Return     Return // RET of RFC 3461 section 4.3
	EnvelopeID string // ENVID of RFC 3461 section 4.4, as xtext, as received
	EightBit   bool   // BODY=8BITMIME, RFC 6152
	SMTPUTF8   bool   // RFC 6531
	Trace      Trace
}

// A Recipient is one accepted RCPT command.
type Recipient struct {
	Path ForwardPath
	// Domain is the relay domain that the recipient belongs to. It decides the
	// next hop.
	Domain   Domain
	Notify   Notify // RFC 3461 section 4.1
	Original string // ORCPT of RFC 3461 section 4.2, as received, xtext and all
}

// Return is RET: what of the message a DSN carries.
type Return uint8

// The values of RET. ReturnUnset leaves it to whoever writes the DSN.
const (
	ReturnUnset Return = iota
	ReturnFull
	ReturnHeaders
)

// Notify is NOTIFY as a set. Zero means that the parameter was not given.
type Notify uint8

// The members of NOTIFY. NotifyNever stands alone.
const (
	NotifyNever Notify = 1 << iota
	NotifySuccess
	NotifyFailure
	NotifyDelay
)

// Trace is what the Received field of RFC 5321 section 4.4 is composed from, at
// each delivery anew. Nothing is decided by it.
type Trace struct {
	Hello    string     // the argument of EHLO or HELO, sanitised
	Client   netip.Addr // the connecting address
	Node     string     // host name of the accepting node
	Protocol string     // "SMTP", "ESMTP", "ESMTPS", "UTF8SMTPS": RFC 3848, RFC 6531
	TLS      string     // "TLS1.3 TLS_AES_128_GCM_SHA256", or "" in the clear
	// Received is when the final dot came, in Unix seconds by the accepting
	// node's wall clock, so that each attempt writes the same field.
	Received int64
}
