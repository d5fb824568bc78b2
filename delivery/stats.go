package delivery

import "sync/atomic"

// Stats are the agent's counters since it was started. They are read while they
// grow.
type Stats struct {
	Connections      atomic.Int64 // conversations that reached the end of EHLO
	ConnectionsLost  atomic.Int64 // of these, ended by the next hop before QUIT
	Answered         atomic.Int64 // of these, where the primary had called for its mail
	ConnectFailed    atomic.Int64 // attempts to connect that failed at every hop
	TLSFallbacks     atomic.Int64 // TLS failed, and the hop was dialled again without
	TLSRefused       atomic.Int64 // hops that the domain's TLS policy forbade
	PipeliningFailed atomic.Int64 // connections that ended as with a next hop that cannot pipeline
	Probes, ProbesUp atomic.Int64

	Pulls, PullsFailed       atomic.Int64
	Leased                   atomic.Int64 // messages granted to us
	Renewals, RenewalsFailed atomic.Int64
	Reports, ReportsRepeated atomic.Int64

	Attempts      atomic.Int64 // messages of which MAIL was said
	Pipelined     atomic.Int64 // of these, behind the dot of another
	Dots          atomic.Int64 // final dots of messages begun
	Stopped       atomic.Int64 // messages given up before the dot because a renewal said stop
	RightsEnded   atomic.Int64 // messages given up before the dot because our right had ended
	BodiesMissing atomic.Int64 // content that could not be opened or read

	// Recipients, by outcome.
	Delivered, InDoubt, Deferred, Failed atomic.Int64
	Hops                                 atomic.Int64 // domains with something to do, or that had a while ago
}
