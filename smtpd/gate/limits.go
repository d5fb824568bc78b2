package gate

import (
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Limits bound what one client, and all of them together, can make us wait for
// or keep. A zero field stands for its default.
type Limits struct {
	ConnectionsMax       int // in all
	ConnectionsPerClient int // per IPv4 address or IPv6 /64

	CommandLineMax int // octets, line end included; RFC 5321 section 4.5.3.1.4 asks for 512
	BodyLineMax    int // octets, line end not included
	ErrorsMax      int // 5yz replies since the last accepted message
	JunkMax        int // commands that bring no mail forward, likewise

	// DiscardMax bounds what is read, and thrown away, of a message that was
	// refused before its end.
	DiscardMax mail.ByteSize

	CommandTimeout   time.Duration // for one whole command; RFC 5321 section 4.5.3.2.7
	DataTimeout      time.Duration // for one read inside DATA; section 4.5.3.2.5
	HandshakeTimeout time.Duration
	WriteTimeout     time.Duration

	// DataRateMin is the fewest octets per second of a body, over each
	// DataRateWindow spent waiting for it. Time that we take ourselves does
	// not count.
	DataRateMin    int
	DataRateWindow time.Duration
}

// withDefaults fills the fields that are zero.
func (l Limits) withDefaults() Limits {
	setDefault(&l.ConnectionsMax, 2000)
	setDefault(&l.ConnectionsPerClient, 50)
	setDefault(&l.CommandLineMax, 2048)
	l.CommandLineMax = min(l.CommandLineMax, inputBytes-1) // A whole line must fit.
	setDefault(&l.BodyLineMax, 1<<20)
	setDefault(&l.ErrorsMax, 20)
	setDefault(&l.JunkMax, 100)
	setDefault(&l.DiscardMax, 50*mail.MiB)
	setDefault(&l.CommandTimeout, 5*time.Minute)
	setDefault(&l.DataTimeout, 3*time.Minute)
	setDefault(&l.HandshakeTimeout, 30*time.Second)
	setDefault(&l.WriteTimeout, time.Minute)
	setDefault(&l.DataRateMin, 500)
	setDefault(&l.DataRateWindow, 5*time.Minute)
	return l
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// Bounds that nobody needs to tune.
const (
	inputBytes       = 4 << 10  // input buffer while commands are awaited
	bodyInputBytes   = 64 << 10 // input buffer inside DATA
	outputBytesMax   = 16 << 10 // replies held back before they are flushed
	lineDiscardMax   = 1 << 20  // of one overlong command line
	unreadRepliesMax = 128      // 250s of one connection not yet known to be read
	crowdedMax       = 64       // connections over a limit that are being told so
	lingerTime       = time.Second
	lingerBytesMax   = 1 << 20
)

// BodyRunMax is the most octets that one NextBody returns.
const BodyRunMax = bodyInputBytes
