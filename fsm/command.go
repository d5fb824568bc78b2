package fsm

import (
	"fmt"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Index is the position of an entry in the Raft log. It orders everything.
type Index uint64

// Token is the fencing token of a lease: the index of the entry that granted
// it, so a later lease has a greater token. Zero is no lease.
type Token uint64

// NodeName is the name that a node's certificate carries.
type NodeName string

// Millis is a length of log time, or a moment of it. Log time starts at zero,
// advances only by Tick commands, and is the only time Apply knows.
type Millis int64

// RequestID names one request of one holder: Boot is drawn at each start of
// the process, Number counts from one. An answer counts only for the request
// that it answers.
type RequestID struct {
	Boot   uint64
	Number uint64
}

// A Command is what one Raft entry asks of the State. It is judged when it is
// applied, never by what its proposer saw.
type Command struct {
	// Node is the node that proposes, also where the leader appends it for it.
	Node NodeName
	// Settled are messages of which Node knows that the client has read the
	// 250. They are settled before anything else is looked at: the other order
	// would merge two legitimate identical messages into one.
	Settled []mail.QueueID
	// Action is what to do. It is never nil.
	Action Action
}

// An Action is one kind of command: Accept, Settle, GrantLeases, RenewLeases,
// ExpireLeases, RecordOutcomes, IssueReport, Hold, Release, Remove, PutDomain,
// RemoveDomain, FlushDomain, ResumeDomain, RecordPolicy, ReportNextHop, PutSettings,
// Tick or RecordStart.
type Action interface{ action() }

// Accept makes a message ours. Key: ID.
type Accept struct {
	Envelope mail.Envelope
	Body     mail.BodyRef // Body.ID is the queue id
}

// Settle carries settled ids when there is nothing else to propose.
type Settle struct{}

// GrantLeases asks for the lease of each listed message towards one next hop.
// The result lists those really granted; their token is the entry's index.
type GrantLeases struct {
	Holder   NodeName
	Domain   mail.Domain
	Messages []mail.QueueID
}

// RenewLeases prolongs a lease and names messages whose final dot may now be
// sent. Key: Token, Request. The result lists the messages to stop.
type RenewLeases struct {
	Holder  NodeName
	Token   Token
	Request RequestID
	Begun   []mail.QueueID
}

// ExpireLeases ends what still stands of a lease, if it has not been renewed
// since Renewal. Key: Token, Renewal.
type ExpireLeases struct {
	Token   Token
	Renewal Index // index of the last renewal seen, or the token itself
}

// RecordOutcomes is the holder's report. Key: Token, message, recipient.
type RecordOutcomes struct {
	Holder   NodeName
	Token    Token
	Messages []MessageOutcomes
}

// MessageOutcomes is what became of one message in one attempt. A recipient of
// the leased domain that is not listed, and was still queued, counts as
// deferred and not tried.
type MessageOutcomes struct {
	ID         mail.QueueID
	Recipients []RecipientOutcome
}

// RecipientOutcome is what became of one recipient. Recipient is its position
// in Envelope.Recipients.
type RecipientOutcome struct {
	Recipient int
	Outcome   Outcome
	Tried     bool       // the next hop spoke about this recipient or message
	Reply     mail.Reply // what it said; zero where it said nothing
	// Relayed says of a delivered one that the next hop was not told which reports
	// the sender wants, since it does not offer DSN. It is of version 5.
	Relayed bool
}

// Outcome is what became of a recipient in one attempt.
type Outcome uint8

// The outcomes. Delivered and InDoubt are facts under any token; Deferred and
// Failed need the current one.
const (
	Delivered Outcome = iota + 1 // the next hop's 2yz to the final dot was read
	InDoubt                      // the dot was sent, no reply was read
	Deferred                     // 4yz, or not tried
	Failed                       // 5yz
)

// String returns the outcome in words.
func (o Outcome) String() string {
	switch o {
	case Delivered:
		return "delivered"
	case InDoubt:
		return "in doubt"
	case Deferred:
		return "deferred"
	case Failed:
		return "failed"
	}
	return fmt.Sprintf("outcome %d", uint8(o))
}

// IssueReport settles reports of one kind that a message owes its sender for some of
// its recipients: in the same entry the report is queued. Key: Report.Body.ID. Refused:
// one of them owes no such report any more.
//
// It is a command of version 5.
type IssueReport struct {
	Message    mail.QueueID
	Kind       ReportKind
	Recipients []int // positions in Envelope.Recipients
	// Report is the message to the sender. Without an id there is none, and Reason
	// says why: what would have been reported as failed stays held.
	Report Accept
	Reason string
}

// Hold freezes a message: no new lease, no renewal.
type Hold struct {
	ID     mail.QueueID
	Reason string
}

// Release ends a hold. Recipients that the next hop refused become queued
// again.
type Release struct{ ID mail.QueueID }

// Remove ends a message without delivering it.
type Remove struct{ ID mail.QueueID }

// PutDomain adds a relay domain or replaces its configuration.
type PutDomain struct{ Domain Domain }

// RemoveDomain ends a relay domain. It is refused while messages for it are
// queued or held.
type RemoveDomain struct{ Name mail.Domain }

// FlushDomain makes every queued message of the domain due at once and has
// every node try the next hop now. It does not shorten a doubt_wait.
type FlushDomain struct{ Name mail.Domain }

// ResumeDomain has the delivery to a domain go on that was stopped, since its next hop
// came back and refused mail for recipients that it had taken mail for.
type ResumeDomain struct{ Name mail.Domain }

// RecordPolicy is the MTA-STS policy of a relay domain as one node fetched it (RFC 8461),
// for all nodes. What it says is no business of the queue's. Refused: the domain's
// configuration asks for none.
//
// It is a command of version 5.
type RecordPolicy struct {
	Domain mail.Domain
	Policy STSPolicy
}

// An STSPolicy is an MTA-STS policy as it was fetched.
type STSPolicy struct {
	ID   string // of the record that announced it
	Text string // at most STSPolicyBytesMax
	// Fetched is when, in Unix milliseconds by the clock of the node that did.
	// Nothing is decided by it here.
	Fetched int64
}

// ReportNextHop is what one node saw of a domain's next hop: it completed EHLO
// (Up), or it did not.
type ReportNextHop struct {
	Node   NodeName
	Domain mail.Domain
	Up     bool
	Detail string // for people: the error or reply, bounded by detailBytesMax
	// Refused says that the next hop answered, and refused the node before it named a
	// message. Then it is not Up, and yet not away. It is of version 6.
	Refused bool
}

// PutSettings replaces the settings that decide Apply.
type PutSettings struct{ Settings Settings }

// Tick advances log time. Elapsed above tickMax counts as tickMax.
type Tick struct{ Elapsed Millis }

// RecordStart says that a server has started for the Number-th time with its
// data directory. Key: Server, Number. Refused: the cluster knows of a later
// start, so the directory is an old copy.
//
// It is a command of version 2.
type RecordStart struct {
	Server ServerID
	Number uint64
}

func (Accept) action()         {}
func (Settle) action()         {}
func (GrantLeases) action()    {}
func (RenewLeases) action()    {}
func (ExpireLeases) action()   {}
func (RecordOutcomes) action() {}
func (IssueReport) action()    {}
func (Hold) action()           {}
func (Release) action()        {}
func (Remove) action()         {}
func (PutDomain) action()      {}
func (RemoveDomain) action()   {}
func (FlushDomain) action()    {}
func (ResumeDomain) action()   {}
func (RecordPolicy) action()   {}
func (ReportNextHop) action()  {}
func (PutSettings) action()    {}
func (Tick) action()           {}
func (RecordStart) action()    {}
