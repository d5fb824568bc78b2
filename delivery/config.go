package delivery

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"log/slog"
	"net"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Router finds the next hops of a domain, best first. *route.Router is one.
type Router interface {
	Route(ctx context.Context, d fsm.Domain) ([]route.Hop, error)
}

// Config is what an Agent is made of.
type Config struct {
	Node     fsm.NodeName
	Hostname string // what we call ourselves in EHLO
	// TraceMark is a comment, parentheses included, that stands in each Received
	// field, the same on every node. "" for none.
	TraceMark string
	Queue     Queue
	Router    Router
	// Dial connects to an IP address and port. Nil is net.Dialer's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Boot is CLOCK_BOOTTIME, or what stands for it in a test. It decides the
	// right to act: it must not stop while the host sleeps. Nil is BootTime.
	Boot func() time.Duration
	// BootID is drawn anew at each start of the process; together with a counter
	// it makes request ids unique across restarts.
	BootID uint64
	// Random draws from [0,1) for jitter. It is called concurrently. Nil is
	// math/rand's.
	Random func() float64
	// TLS, if not nil, replaces the settings of opportunistic STARTTLS. The
	// server name is set per connection.
	TLS *tls.Config
	// TLSPolicy returns what TLS a relay domain's next hops must show. It is asked
	// at each attempt. Nil, and nil as its answer, is opportunistic.
	TLSPolicy func(mail.Domain) *tlspolicy.Policy
	// TLSA looks up the TLSA records of a hop, for policies that are by DANE. Nil
	// knows of none, and such a policy then permits no hop. (*route.DNS).TLSA is
	// one.
	TLSA func(ctx context.Context, d fsm.Domain, at route.Hop) tlspolicy.TLSA
	// STS returns what is known of a domain's MTA-STS policy, for policies that
	// are by it. Nil knows nothing.
	STS func(ctx context.Context, d mail.Domain) tlspolicy.STS
	// PublicRoots are the authorities of policies that name none. Nil means the
	// host's.
	PublicRoots *x509.CertPool
	// TLSAlarm is told, when a domain's hops were tried, why its TLS policy
	// forbade them, or what is wrong with the policy although one of them is
	// connected to. Nil says that one is, and nothing is wrong; where they failed
	// for another reason it is not called. It is called concurrently and often
	// with the same. Nil tells nobody.
	TLSAlarm func(mail.Domain, *tlspolicy.Failure)
	// RefusedAlarm is told that a domain's next hop refuses us, and not a message or
	// recipient: with a 4yz or 5yz in its banner or to EHLO, where we have no other
	// connection, or with a 5yz to MAIL for several messages one after the other. Their mail waits, and it may be all mail.
	// Nil says that it does not, or no more. It is called concurrently and often with
	// the same. Nil tells nobody.
	RefusedAlarm func(mail.Domain, *smtpclient.StageError)
	// TLSCounts counts the sessions of all domains. Nil counts for nobody.
	TLSCounts *tlspolicy.Counts
	Log       *slog.Logger

	// LeaseDuration is D: equal on every node and at the leader.
	LeaseDuration time.Duration
	// LeaseBatch is how many messages one lease has at most.
	LeaseBatch int
	// ConnectionsMax is the ceiling of connections per domain in the whole
	// cluster; each node takes its share, and at least one.
	ConnectionsMax int
	Timeouts       smtpclient.Timeouts
	// Controls breaks single rules, in builds with the tag controls alone.
	Controls controls.Set
	// Failpoint is called at named moments, for tests that end the node there.
	Failpoint controls.Failpoint
}

// The defaults of Config.
const (
	LeaseDuration  = time.Minute
	LeaseBatch     = 64
	ConnectionsMax = 20
)

// driftDivisor bounds the drift of a node's clock: D(1-1/driftDivisor) of ours
// is never longer than D of the leader's.
const driftDivisor = 100

func (c Config) withDefaults() (Config, error) {
	if c.Queue == nil || c.Router == nil || c.Hostname == "" || c.Node == "" {
		return c, errors.New("delivery: Node, Hostname, Queue and Router are needed")
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{}).DialContext
	}
	if c.Boot == nil {
		c.Boot = BootTime
	}
	if c.Random == nil {
		c.Random = defaultRandom
	}
	if c.TLS == nil {
		c.TLS = opportunisticTLS()
	}
	if c.TLSAlarm == nil {
		c.TLSAlarm = func(mail.Domain, *tlspolicy.Failure) {}
	}
	if c.RefusedAlarm == nil {
		c.RefusedAlarm = func(mail.Domain, *smtpclient.StageError) {}
	}
	if c.TLSCounts == nil {
		c.TLSCounts = new(tlspolicy.Counts)
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.LeaseDuration <= 0 {
		c.LeaseDuration = LeaseDuration
	}
	if c.LeaseBatch <= 0 {
		c.LeaseBatch = LeaseBatch
	}
	if c.ConnectionsMax <= 0 {
		c.ConnectionsMax = ConnectionsMax
	}
	return c, nil
}

// opportunisticTLS hides the mail from those who only listen. The peer's name
// is not verified, and old versions are taken, because the alternative is no
// TLS at all (RFC 7435).
func opportunisticTLS() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10}
}
