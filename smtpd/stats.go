package smtpd

import "sync/atomic"

// Stats counts what became of messages since the server was made.
type Stats struct {
	Accepted      atomic.Uint64 // answered 250
	AcceptUnknown atomic.Uint64 // closed without a reply: accept_unknown_total
	NotAccepted   atomic.Uint64 // refused by the Queue, certainly never appended
	Refused       atomic.Uint64 // refused by us after DATA: size, loop, lines
	MemoryRefused atomic.Uint64 // 452: bytes in flight
	Settled       atomic.Uint64 // 250s that the client provably read
	Panics        atomic.Uint64
}
