package config

import (
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A key is one key of the file.
type key struct {
	name string
	// required, where not empty, says why a file must have the key.
	required string
	set      func(*Config, value) error
}

// keys lists every key, in the order of example.toml.
func keys() []key {
	return []key{
		{"cluster", "name the cluster; all its nodes and its CA carry the same name", func(c *Config, v value) error {
			return setName(&c.Cluster, v)
		}},
		{"node", "name this node, as its certificate does", func(c *Config, v value) error {
			var name string
			err := setName(&name, v)
			c.Node = fsm.NodeName(name)
			return err
		}},
		{"hostname", "give the name by which MX records know this host", setHostname},
		{"data_dir", "give the directory for the log and the messages", func(c *Config, v value) error {
			return setString(&c.DataDir, v)
		}},
		{"smtp_listen", `list the addresses to take mail on, as in [":25"]`, func(c *Config, v value) error {
			return setAddresses(&c.SMTPListen, v, 1, listenAddress)
		}},
		{"smtp_cert", "", func(c *Config, v value) error { return setString(&c.SMTPCert, v) }},
		{"smtp_key", "", func(c *Config, v value) error { return setString(&c.SMTPKey, v) }},
		{"atrn_listen", "", func(c *Config, v value) error { return setAddresses(&c.ATRNListen, v, 0, listenAddress) }},
		{"cluster_listen", `give the address for the other nodes, as in ":7420"`, func(c *Config, v value) error {
			return setAddress(&c.ClusterListen, v, listenAddress)
		}},
		{"cluster_advertise", "", func(c *Config, v value) error {
			return setAddress(&c.ClusterAdvertise, v, dialAddress)
		}},
		{"gossip_listen", `give the address for gossip, as in ":7421"`, func(c *Config, v value) error {
			return setAddress(&c.GossipListen, v, listenAddress)
		}},
		{"gossip_advertise", "", func(c *Config, v value) error {
			return setAddress(&c.GossipAdvertise, v, dialAddress)
		}},
		{"gossip_key_file", `make one with "holdfast gossip-key FILE" and copy it to every node`, func(c *Config, v value) error {
			return setString(&c.GossipKeyFile, v)
		}},
		{"ca", `make one with "holdfast ca create"`, func(c *Config, v value) error { return setString(&c.CA, v) }},
		{"cert", `make one with "holdfast ca issue"`, func(c *Config, v value) error { return setString(&c.Cert, v) }},
		{"key", `make one with "holdfast ca issue"`, func(c *Config, v value) error { return setString(&c.Key, v) }},
		{"join", "", func(c *Config, v value) error { return setAddresses(&c.Join, v, 0, dialAddress) }},
		{"bootstrap_expect", "", func(c *Config, v value) error { return setInt(&c.BootstrapExpect, v, 1, votersMax) }},
		{"latency", "", func(c *Config, v value) error { return setWord(&c.Latency, v, LAN, WAN) }},
		{"admin_socket", "", setAdminSocket},
		{"log_format", "", func(c *Config, v value) error { return setWord(&c.LogFormat, v, LogText, LogJSON) }},
		{"max_message_size", "", func(c *Config, v value) error {
			// RFC 5321 section 4.5.3.1.7: 64K octets at the least.
			return setSize(&c.MaxMessageSize, v, 64*mail.KiB, mail.GiB)
		}},
		{"recipients_max", "", func(c *Config, v value) error {
			// RFC 5321 section 4.5.3.1.8: 100 at the least. A longer envelope than
			// this would not fit into one log entry.
			return setInt(&c.RecipientsMax, v, 100, 10_000)
		}},
		{"bytes_in_flight", "", func(c *Config, v value) error {
			return setSize(&c.BytesInFlight, v, 64*mail.KiB, 64*mail.GiB)
		}},
		{"connections_per_client", "", func(c *Config, v value) error {
			return setInt(&c.ConnectionsPerClient, v, 1, 100_000)
		}},
		{"exempt_networks", "", setExemptNetworks},
		{"disk_free_min_percent", "", func(c *Config, v value) error { return setInt(&c.DiskFreeMinPercent, v, 0, 90) }},
		{"commit_patience", "", func(c *Config, v value) error {
			// Senders wait ten minutes for the reply to the final dot (RFC 5321
			// section 4.5.3.2.6); half of it leaves them their own delays.
			return setDuration(&c.CommitPatience, v, time.Second, 5*time.Minute)
		}},
		{"lease_duration", "", func(c *Config, v value) error {
			return setDuration(&c.LeaseDuration, v, time.Second, 10*time.Minute)
		}},
		{"lease_batch", "", func(c *Config, v value) error { return setInt(&c.LeaseBatch, v, 1, 1000) }},
		{"delivery_connections_max", "", func(c *Config, v value) error {
			return setInt(&c.DeliveryConnectionsMax, v, 1, 1000)
		}},
		{"smarthost", "", setSmarthost},
		{"hydration_rate", "", func(c *Config, v value) error {
			return setSize(&c.HydrationRate, v, 64*mail.KiB, 64*mail.GiB)
		}},
		{"scrub_rate", "", func(c *Config, v value) error {
			return setSize(&c.ScrubRate, v, 64*mail.KiB, 64*mail.GiB)
		}},
		{"doubt_wait", "", func(c *Config, v value) error {
			return setDuration(&c.DoubtWait, v, time.Second, 24*time.Hour)
		}},
	}
}

// votersMax is the largest cluster that makes sense: each message is written by
// every voter, and seven outlive the loss of three.
const votersMax = 7

// nearest returns the known key that a mistyped one most likely means, or "".
func nearest(name string) string {
	best, distance := "", len(name)/3+1
	for _, k := range keys() {
		if d := editDistance(name, k.name); d < distance {
			best, distance = k.name, d
		}
	}
	return best
}

// editDistance is Levenshtein's. Both strings are short: see keyBytesMax.
func editDistance(a, b string) int {
	if len(a) > keyBytesMax {
		return len(a)
	}
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}

// keyBytesMax bounds the keys that are looked at. Ours are shorter.
const keyBytesMax = 64

func unknownKey(name string) string {
	if known := nearest(name); known != "" {
		return fmt.Sprintf("is no known key: did you mean %q?", known)
	}
	return "is no known key: remove it, or see the example file for the keys there are"
}
