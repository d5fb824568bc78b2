package peer

import (
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Both sides of the wire obey these.
const (
	// frameBytesMax is the most octets of bodies in one message: little enough
	// that bodies interleave well, enough that the overhead does not show.
	frameBytesMax = 256 << 10

	// framesMax is the most pieces of bodies in one message.
	framesMax = 512

	// messageBytesMax is the largest gRPC message, in both directions.
	messageBytesMax = 1 << 20

	// ProposeBytesMax is the largest command, as the log's entries are bounded.
	ProposeBytesMax = 64 << 10

	// ProposalsMax and ProposalsBytesMax bound the commands of one call.
	ProposalsMax      = 256
	ProposalsBytesMax = 512 << 10

	// BodyBytesMax is the largest body that moves between nodes. It is above any
	// max_message_size, which a node decides where mail comes in; here it only
	// keeps a wrong reference from being believed.
	BodyBytesMax = 512 * mail.MiB

	// The push window: the bodies begun and not yet acknowledged.
	windowBodiesMax = 256
	windowBytesMax  = 16 * mail.MiB

	// reasonBytesMax is the longest error text that crosses the wire.
	reasonBytesMax = 512

	// domainBytesMax bounds the name of what a lease is asked of: a domain name, and what
	// the queue may put before it.
	domainBytesMax = 320
	// connectionsMax bounds how many connections a node says that it has.
	connectionsMax = 10_000
	// seenMeanMax bounds how long a node says that a next hop took for its replies.
	seenMeanMax = time.Hour
	// pullMax is the most messages that one Pull can ask for.
	pullMax = 4096
)

// What a server bears from its peers.
const (
	streamsMax     = 1024     // calls at once on one connection: proposals wait there for their commit
	headerBytesMax = 16 << 10 // of one call
	fetchesMax     = 8        // bodies sent at once that somebody waits for; further calls wait
	// backgroundFetchesMax is the same of bodies that nobody waits for. They have
	// places of their own, so that a node which lacks its whole spool does not
	// keep one waiting that cannot append an entry.
	backgroundFetchesMax = 4

	prefaceMax      = 5 * time.Second
	keepaliveIdle   = 20 * time.Second // without traffic, then a ping
	keepaliveAnswer = 10 * time.Second // without an answer, then the end
	keepaliveMin    = keepaliveIdle / 2

	// The flow-control windows of HTTP/2. They bound what lies in memory unread
	// per stream and connection, and the throughput per round trip.
	streamWindowBytes     = 4 << 20
	connectionWindowBytes = 8 << 20

	// What is written to a connection, and read from it, at a time.
	writeBufferBytes = 64 << 10
	readBufferBytes  = 64 << 10
)

// What a client allows itself.
const (
	peersMax = 64 // names ever asked for

	// lineBytesMax is the default of Config.LineBytesMax.
	lineBytesMax = 64 * mail.MiB

	// laggingBytesMax bounds the bodies that lie in line for one peer although
	// nobody waits for them any more: a majority has them without it. What is
	// dropped, that peer fetches when it needs it.
	laggingBytesMax = 16 * mail.MiB

	// activeBodiesMax is how many bodies take turns on a push stream, so that a
	// large one does not keep small ones waiting.
	activeBodiesMax = 8

	// readyMax bounds the wait for a connection before a call. The call is then
	// certainly not sent.
	readyMax = 3 * time.Second

	// The pauses between attempts to connect to a peer, and to open its push
	// stream again.
	reconnectMin = 50 * time.Millisecond
	reconnectMax = time.Second

	connectMax = 5 * time.Second // one attempt

	// fetchResumesMax is how often a fetch goes on where it broke off.
	fetchResumesMax = 8
)
