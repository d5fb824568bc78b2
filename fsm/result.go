package fsm

import (
	"fmt"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Verdict says how a command ended. Anything but Done means that the command
// changed nothing but what its Settled ids changed.
type Verdict uint8

// The verdicts.
const (
	Done     Verdict = iota + 1
	Repeat           // Accept: the message is known under Result.ID
	Refused          // the command does not fit the state; Result.Text says why
	NotFound         // it names a message, domain or lease that is not there
	Invalid          // it is malformed, or breaks a limit
)

// String returns the verdict in words.
func (v Verdict) String() string {
	switch v {
	case Done:
		return "done"
	case Repeat:
		return "repeat"
	case Refused:
		return "refused"
	case NotFound:
		return "not found"
	case Invalid:
		return "invalid"
	}
	return fmt.Sprintf("verdict %d", uint8(v))
}

// A Result is what the proposer of a command learns.
type Result struct {
	Verdict Verdict
	// ID is, after Accept, the queue id that the 250 names: the message's own,
	// or that of the message it repeats.
	ID mail.QueueID
	// Messages lists, after GrantLeases, the messages really granted; after
	// RenewLeases, those that the holder must stop (also under a verdict other
	// than Done, where it lists all that were named).
	Messages []mail.QueueID
	// MayStillArrive warns, after Hold and Remove, that a node may already have
	// sent the final dot.
	MayStillArrive bool
	// Text explains a verdict other than Done to the operator.
	Text string
}

// An Effect is something the shell does after an Apply: Finished, Queued,
// NextHopChanged or DomainStopped. Effects are hints: a shell that was restarted in between must
// find the same facts in the State.
type Effect interface{ effect() }

// Finished says that nobody needs the body of this id any more: the message has
// ended, or the Accept was refused or repeated another and stored nothing.
type Finished struct{ ID mail.QueueID }

// Queued says that messages became due for the domain.
type Queued struct{ Domain mail.Domain }

// NextHopChanged says that the next hop of a domain changed state.
type NextHopChanged struct {
	Domain   mail.Domain
	From, To NextHopState
}

func (Finished) effect() {}
func (Queued) effect()   {}

// DomainStopped says that the delivery to a domain was stopped: see ResumeDomain.
type DomainStopped struct{ Domain mail.Domain }

func (NextHopChanged) effect() {}
func (DomainStopped) effect()  {}
