package fsm

import (
	"fmt"
	"net/netip"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Domain is the configuration of one relay domain, equal on every node.
//
// Invariant: exactly one of these: MX is true, OnDemand is true, Targets is not empty.
type Domain struct {
	Name mail.Domain
	// MX routes by the domain's MX records, without any cluster member and
	// without what is equal to or worse than one.
	MX bool
	// Targets are explicit next hops, tried in order.
	Targets []Target
	// OnDemand says that its primary has no address at which a node could reach it: its
	// mail waits until one of Callers calls for it (RFC 2645).
	OnDemand bool
	// Schedule is when, and for how long, its mail is tried.
	Schedule Schedule
	// ConnectionsMax is how many connections to the next hop the whole cluster has
	// at most; 0 leaves it to each node's configuration.
	ConnectionsMax int
	// ETRN are networks whose hosts may have its mail delivered at once, beside its
	// next hops (RFC 1985). Masked.
	ETRN []netip.Prefix
	// TLS is what its next hops must show.
	TLS TLSPolicy
	// Bounce says whose mail is reported on to its sender, where it was refused for
	// good or outlived its lifetime.
	Bounce BouncePolicy
	// DelayWarning is after which time a sender who asked for it hears that his mail
	// waits; 0 is never.
	DelayWarning Millis
	// XClient has the next hop told who gave us each message, where it lets itself be
	// told (XCLIENT).
	XClient bool
	// Callers are those who may call for its mail, beside its next hops and whom ETRN
	// lists.
	Callers Callers
}

// Callers are who may call for the mail of a relay domain, wherever they come from.
type Callers struct {
	// Pins are SHA-256 of the keys of TLS client certificates.
	Pins [][32]byte
	// User and Secret are a name and password; both are empty, or neither.
	User   string
	Secret PasswordHash
}

// A PasswordHash is a password, salted and hashed by who made it, and opaque here. It is
// not for people to see.
type PasswordHash string

// String says no more than whether there is one.
func (h PasswordHash) String() string {
	if h == "" {
		return ""
	}
	return "(set)"
}

// A TLSPolicy is what TLS the next hops of a relay domain must show. The zero value is
// opportunistic. What it means is the business of those who deliver; the queue keeps it.
type TLSPolicy struct {
	Mode        TLSMode
	Pins        [][32]byte // SHA-256 of keys
	Authorities string     // certificates, in PEM
	Names       []string   // that certificates must have
}

// A TLSMode is the kind of a TLSPolicy.
type TLSMode uint8

// The modes.
const (
	TLSOpportunistic TLSMode = iota
	TLSRequire
	TLSVerify
	TLSDANE
	TLSMTASTS
)

// String returns the mode as it is configured.
func (m TLSMode) String() string {
	switch m {
	case TLSOpportunistic:
		return "opportunistic"
	case TLSRequire:
		return "require"
	case TLSVerify:
		return "verify"
	case TLSDANE:
		return "dane"
	case TLSMTASTS:
		return "mta-sts"
	}
	return fmt.Sprintf("mode %d", uint8(m))
}

// A Schedule says when, and for how long, the mail of a relay domain is tried. The
// zero value is that of older versions: waits as the Settings say, without end.
type Schedule struct {
	// RetryMin is how long a message waits that got a 4yz; the wait is doubled per
	// attempt, up to RetryMax. Up to a quarter is added, which follows from the queue
	// id: what was deferred together does not come back together. Both are zero, or
	// neither.
	RetryMin, RetryMax Millis
	// Lifetime is how long after it was accepted, or released, a message is tried.
	// Then it is held. Zero is for ever.
	Lifetime Millis
}

// The schedule of a domain whose administrator says nothing of it.
const (
	RetryMinDefault = minute
	RetryMaxDefault = hour
	LifetimeDefault = 30 * 24 * hour
)

// ConnectionsMaxDefault is the ceiling of such a domain.
const ConnectionsMaxDefault = 20

// A Target is one explicit next hop.
type Target struct {
	Host string // name or IP address, without brackets
	Port uint16
}

// NextHopState is what the cluster believes of a domain's next hop.
type NextHopState uint8

// The states. A next hop nobody has tried is NextHopUp: trying is how we learn.
const (
	NextHopUp       NextHopState = iota + 1
	NextHopSuspect               // some node failed since it was last up
	NextHopDown                  // two nodes failed, or all where there are fewer
	NextHopRefusing              // the same, but it answered one of them, and refused it
)

// Probed reports whether nobody gets through to a next hop in that state: the nodes
// probe it in turn, and do not connect whenever there is mail for it.
func (n NextHopState) Probed() bool { return n == NextHopDown || n == NextHopRefusing }

// String returns the state in words.
func (n NextHopState) String() string {
	switch n {
	case NextHopUp:
		return "up"
	case NextHopSuspect:
		return "suspect"
	case NextHopDown:
		return "down"
	case NextHopRefusing:
		return "refusing"
	}
	return fmt.Sprintf("state %d", uint8(n))
}

// NextHop is the replicated state of one domain's next hop.
//
// Invariant: no node is both in Failed and in Barred, and each is in them once.
type NextHop struct {
	State NextHopState
	// Failed lists the nodes that did not reach it when they last tried, and Barred
	// those that it answered and refused. Since it was last up, sorted.
	Failed []NodeName
	Barred []NodeName
	Since  Millis // log time of the last change of State
	Detail string // what the last report said
	// Flush is the index of the last FlushDomain: a node that sees it grow
	// tries at once.
	Flush Index
	// Guarded says that it has come back, and has taken nothing yet: few messages are
	// out at a time.
	Guarded bool
	// Stopped says that it refused what it should have taken: no message is leased
	// until ResumeDomain. StoppedAt is the log time of that.
	Stopped   bool
	StoppedAt Millis
	// Refused is how many messages it refused so, while it was guarded.
	Refused int
}

// Settings are the cluster's limits that decide Apply. They live in the log,
// never in one node's file. Zero fields are read as DefaultSettings'.
type Settings struct {
	DoubtWait          Millis // how long a message in doubt waits for its holder
	FingerprintLife    Millis // how long an unsettled repeat is recognised
	FingerprintMax     int    // how many unsettled fingerprints are kept
	RecordLife         Millis // how long an ended message is remembered
	RetryMin, RetryMax Millis // wait after a 4yz, doubled per attempt
	Voters             int    // how many nodes' failures make a next hop down: min(2, Voters)
	// WaitsPerEntry is how many waits one entry ends at most, where those of a
	// whole domain end; the entries that come next end the others. Zero is all:
	// older versions know no other way.
	WaitsPerEntry int
}
