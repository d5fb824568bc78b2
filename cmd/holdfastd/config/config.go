// Package config reads the configuration file of one node.
//
// The file is TOML, flat, and read strictly: an unknown key, a key given twice,
// a value of the wrong type or out of its range is a Problem that names file,
// line and key and says what to do, and all of them are reported at once.
// Nothing of a file with a Problem is used. A Warning is a setting that is
// allowed and probably not meant.
//
// It promises that a *Config that Load returned is complete: defaults are filled
// in, paths are absolute, addresses have a host and a port, and the files it
// names exist and are not readable by everybody where they are secret. It
// assumes nothing about the file, which may be hostile or not a file at all. It
// refuses to decide what belongs to the whole cluster: relay domains and what
// decides Apply live in the log, see docs/architecture.md.
package config

import (
	"net/netip"
	"time"

	_ "embed"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Latency says how far apart the nodes are. It decides Raft's timeouts.
type Latency string

// The values of the key "latency".
const (
	LAN Latency = "lan" // heartbeat timeout 1.5 s
	WAN Latency = "wan" // heartbeat timeout 5 s
)

// LogFormat is how log lines are written.
type LogFormat string

// The values of the key "log_format".
const (
	LogText LogFormat = "text"
	LogJSON LogFormat = "json"
)

// A Config is what one node is told by its file. example.toml describes every
// key to the administrator; its name is the field's in lower case with
// underscores.
//
// Invariant: BytesInFlight >= MaxMessageSize, or a message of the largest size
// could never be accepted.
// Invariant: DoubtWait >= LeaseDuration, or a message in doubt could be tried
// again while its first holder may still act.
// Invariant: SMTPCert and SMTPKey are both set or both empty; set where ATRNListen is not
// empty.
type Config struct {
	Cluster  string
	Node     fsm.NodeName
	Hostname mail.Domain // in the banner, in Received fields and in EHLO
	DataDir  string

	SMTPListen []string
	SMTPCert   string
	SMTPKey    string
	ATRNListen []string // for primaries that call for their mail; empty: nowhere

	ClusterListen    string
	ClusterAdvertise string // what other nodes dial
	GossipListen     string
	GossipAdvertise  string
	GossipKeyFile    string
	CA, Cert, Key    string
	Join             []string // gossip addresses of other nodes
	BootstrapExpect  int
	Latency          Latency

	AdminSocket string
	LogFormat   LogFormat

	MaxMessageSize         mail.ByteSize
	RecipientsMax          int // per transaction
	BytesInFlight          mail.ByteSize
	ConnectionsPerClient   int            // per IPv4 address or IPv6 /64
	ExemptNetworks         []netip.Prefix // from ConnectionsPerClient; loopback always is
	DiskFreeMinPercent     int            // kept for Raft
	CommitPatience         time.Duration
	LeaseDuration          time.Duration
	LeaseBatch             int
	DeliveryConnectionsMax int           // per relay domain and cluster
	Smarthost              string        // host:port that takes reports to senders; "" for their MX hosts
	DoubtWait              time.Duration // used at the first boot of a cluster only
	HydrationRate          mail.ByteSize // a second
	ScrubRate              mail.ByteSize // a second

	// Warnings are settings that are allowed and probably not meant.
	Warnings Problems

	source source
}

// A source is where a Config came from.
type source struct {
	file string
	at   lines
}

// Problem is what somebody else found wrong with the value of a key: it says
// where that stands.
func (c *Config) Problem(key string, err error) Problem {
	return Problem{c.source.file, c.source.at.of(key), key, err.Error()}
}

// Default returns the settings that apply where a file is silent. What has no
// default is zero.
func Default() *Config {
	return &Config{
		BootstrapExpect:        3,
		Latency:                WAN,
		AdminSocket:            "/run/holdfast/admin.sock",
		LogFormat:              LogText,
		MaxMessageSize:         50 * mail.MiB,
		RecipientsMax:          1000,
		BytesInFlight:          128 * mail.MiB,
		ConnectionsPerClient:   50,
		DiskFreeMinPercent:     10,
		CommitPatience:         60 * time.Second,
		LeaseDuration:          60 * time.Second,
		LeaseBatch:             64,
		DeliveryConnectionsMax: 20,
		DoubtWait:              10 * time.Minute,
		HydrationRate:          32 * mail.MiB,
		ScrubRate:              16 * mail.MiB,
	}
}

//go:embed example.toml
var example string

// Example returns a complete file with every key, its default, and what it
// means. Its values parse; the files that it names need not exist.
func Example() string { return example }
