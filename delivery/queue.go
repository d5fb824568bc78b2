package delivery

import (
	"context"
	"errors"
	"io"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// ErrLeaseEnded: nothing stands under the token any more. Renew returns it; it
// is the same as stopping every message of the lease.
var ErrLeaseEnded = errors.New("lease has ended")

// A Queue is what the agent needs of the replicated queue. Its methods are
// called concurrently, and each returns soon after its context ends.
type Queue interface {
	// Work lists, from this node's applied state, the relay domains that have
	// due or leased mail or whose next hop is not up, and those that RefusedAlarm was
	// told of, whose next hops refuse this node's connections. The order does not matter.
	// Those whose mail waits to be called for may be among them.
	Work() []Work
	// WorkFor is Work for one domain, whether it has due mail or not. False: it is none
	// that mail is queued for, or none that is delivered now.
	WorkFor(mail.Domain) (Work, bool)
	// Changed returns a channel that is closed, or gets a value, when Work may
	// have changed since the call: new mail, a flush, a next hop, a tick. It is
	// called again after each.
	Changed() <-chan struct{}
	// Pull asks the leader for a lease. One without messages means that there is
	// nothing for us now, or that the cluster has enough connections to the next hop.
	Pull(ctx context.Context, w Wish) (Lease, error)
	// Renew commits a renewal that names messages as begun. Nil means that it is
	// committed, and stop lists the messages that must not be delivered under
	// this token. With an error it may be committed or not. The answer must be
	// the answer to this very request.
	Renew(ctx context.Context, token fsm.Token, request fsm.RequestID, begun []mail.QueueID) (stop []mail.QueueID, err error)
	// Report commits outcomes. Nil means that the command was applied, whatever
	// it changed. On an error the same report is repeated.
	Report(ctx context.Context, token fsm.Token, outcomes []fsm.MessageOutcomes) error
	// ReportNextHop commits what this node saw of the domain's next hop.
	ReportNextHop(ctx context.Context, domain mail.Domain, saw Sight, detail string) error
	// OpenBody opens content that is held here or can be had. Reading it fails
	// rather than give other octets than those that were accepted.
	OpenBody(ctx context.Context, ref mail.BodyRef) (io.ReadSeekCloser, error)
}

// A Sight is what this node saw of a next hop when it tried last.
type Sight uint8

// The sights.
const (
	Reached Sight = iota + 1 // it completed EHLO
	Missed                   // it did not
	Barred                   // neither: the next hop answered, and refused us
)

// String returns the sight in a word.
func (s Sight) String() string {
	switch s {
	case Reached:
		return "reached"
	case Missed:
		return "missed"
	case Barred:
		return "barred"
	}
	return "nothing"
}

// Work is what there is to do for one relay domain.
type Work struct {
	Domain  fsm.Domain
	NextHop fsm.NextHop
	// Due is how many messages could be leased now, in the whole cluster.
	Due int
	// Rank is this node's position among the Nodes nodes that deliver, from
	// zero: who probes when, and how the connections are shared out. Voters
	// sorted by name will do.
	Rank, Nodes int
}

// A Wish is what a node asks the leader for: up to Max messages for the domain. With a
// Max of zero it wants none, and only says what it saw.
type Wish struct {
	Domain      mail.Domain
	Max         int
	Connections int // that this node has to the next hop, the one that asks included
	Seen        Feedback
}

// Feedback is what a connection saw of the next hop in one lease.
type Feedback struct {
	Token    fsm.Token     // of the lease
	Answered int           // messages that the next hop took, or refused for good
	Deferred int           // messages that it put off
	Lost     bool          // the connection ended otherwise than by us
	Mean     time.Duration // from a final dot to its reply; 0 where there was none
}

// A Lease is the answer to a Pull: the messages that were really granted, under
// the token that the grant's entry made.
type Lease struct {
	Token    fsm.Token
	Messages []Message
	// Connections is how many this node may have to the next hop; negative where the
	// leader does not say.
	Connections int
}

// A Message is one leased message.
type Message struct {
	ID       mail.QueueID
	Envelope mail.Envelope
	// Recipients are the positions, in Envelope.Recipients, of the recipients of
	// the leased domain that are still queued. Not empty.
	Recipients []int
	Body       mail.BodyRef
}
