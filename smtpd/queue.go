package smtpd

import (
	"context"
	"errors"
	"net/netip"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Queue is where accepted mail goes. All methods may be called concurrently;
// only Submit and RelayDomain may block.
type Queue interface {
	// Ready returns nil when this node can commit now. Any error makes new
	// connections see 421 and open sessions 451; ErrDiskLow lets them greet, and
	// has a reply of its own to MAIL and DATA.
	Ready() error
	// RelayDomain reports whether mail for d is taken. False is final and makes
	// the recipient refused for good, so what is not certain is an error. It may
	// have to ask another node, and heeds ctx.
	RelayDomain(ctx context.Context, d mail.Domain) (bool, error)
	// PostmasterDomain returns the relay domain that mail for <postmaster>, without
	// a domain, goes to: the first one. False when there is none.
	PostmasterDomain() (mail.Domain, bool)
	// Submit commits a message. The context has the commit patience as its
	// deadline; it is not bound to the client's connection. Submit returns soon
	// after it ends. nil means committed, and the id is what the 250 names: for
	// a repeat, the first copy's.
	//
	// ErrNotAccepted, ErrTooManyRecipients and ErrDiskLow say that the message
	// was certainly never appended. Every other error is taken for
	// ErrOutcomeUnknown, and so is one that wraps ErrOutcomeUnknown beside
	// another of these.
	Submit(ctx context.Context, e mail.Envelope, b *mail.Body) (mail.QueueID, error)
	// Settle says that the client has provably read the 250 that named id.
	Settle(id mail.QueueID)
	// Turn has the mail for d delivered now, as ETRN asks for, if the caller may ask
	// that. ErrTurnRefused: it may not, or d is no relay domain; any other error means
	// that it could not be done. It heeds ctx.
	Turn(ctx context.Context, who Caller, d mail.Domain) (Turned, error)
	// KnowsKeys reports whether some caller is known by the key of its certificate: else
	// no client need be asked for one. It does not block.
	KnowsKeys() bool
}

// A Caller is who calls for a domain's mail.
type Caller struct {
	Address netip.Addr
	// Key is SHA-256 of the key of the TLS certificate that it showed; HasKey says that
	// it did.
	Key    [32]byte
	HasKey bool
}

// Turned is what came of a Turn.
type Turned struct {
	// Waiting is how many messages wait for the domain. Uncounted: it is not known, since
	// this node's copy of the queue is not the newest.
	Waiting   int
	Uncounted bool
	// Underway says that the mail was called for just before, and is on its way already.
	Underway bool
}

var (
	// ErrNotAccepted: the message was certainly never appended. 451 4.3.0.
	ErrNotAccepted = errors.New("message not accepted")
	// ErrOutcomeUnknown: the message may or may not be committed, now or later.
	// The connection is closed without a reply.
	ErrOutcomeUnknown = errors.New("outcome of the commit unknown")
	// ErrTooManyRecipients: the envelope is too long for one log entry, and the
	// message was never appended. 452 4.5.3: the sender splits it.
	ErrTooManyRecipients = errors.New("envelope too long")
	// ErrDiskLow: no room for more mail, and the message was never appended.
	// 452 4.3.1.
	ErrDiskLow = errors.New("disk space low")
	// ErrTurnRefused: this client may not have that domain's mail delivered. 459.
	ErrTurnRefused = errors.New("client may not ask for delivery")
)
