package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// fileBytesMax is the largest file that is read, of any kind.
const fileBytesMax = 1 * mail.MiB

// Load reads a file and everything that it names. The error is Problems, each
// with what to do, except for none.
func Load(path string) (*Config, error) {
	c, lines, problems := load(path)
	if len(problems) == 0 {
		c.checkFiles(path, lines, time.Now(), &problems)
	}
	if len(problems) > 0 {
		problems.sort()
		return nil, problems
	}
	c.source = source{path, lines}
	return c, nil
}

// Parse judges the content of a file by itself: it does not look at the files
// that it names. The error is Problems.
func Parse(file string, data []byte) (*Config, error) {
	c, _, problems := parse(file, data)
	if len(problems) > 0 {
		return nil, problems
	}
	return c, nil
}

// lines are the lines of the keys that a file has.
type lines map[string]int

// of returns a key's line. A missing key is reported on the first line, so that
// every message has one.
func (l lines) of(key string) int { return max(1, l[key]) }

func load(path string) (*Config, lines, Problems) {
	data, err := read(path)
	if err != nil {
		return nil, nil, Problems{{File: path, Text: err.Error()}}
	}
	return parse(path, data)
}

// read returns the content of a regular file of bounded size. It opens before
// it looks, so that the file cannot be exchanged in between, and without
// waiting, so that a FIFO does not hang the daemon.
func read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|nonblock, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("does not exist: correct the path, or make the file")
	case errors.Is(err, fs.ErrPermission):
		return nil, errors.New("may not be read by this user: change its owner or mode")
	case err != nil:
		return nil, fmt.Errorf("cannot be read: %w", err)
	}
	defer func() { _ = f.Close() }() // only read from
	info, err := f.Stat()
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot be read: %w", err)
	case info.IsDir():
		return nil, errors.New("is a directory: give the path of a file")
	case !info.Mode().IsRegular():
		return nil, errors.New("is no regular file: give the path of one")
	}
	data, err := io.ReadAll(io.LimitReader(f, int64(fileBytesMax)+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot be read: %w", err)
	case len(data) > int(fileBytesMax):
		return nil, fmt.Errorf("is larger than %s: it is no file of ours", formatSize(fileBytesMax))
	}
	return data, nil
}

func parse(file string, data []byte) (*Config, lines, Problems) {
	settings, problems := parseDocument(file, data)
	if settings == nil && len(problems) > 0 {
		return nil, nil, problems // not TOML: what keys it lacks is not known
	}
	c := Default()
	at := lines{}
	known := map[string]key{}
	for _, k := range keys() {
		known[k.name] = k
	}
	for _, s := range settings {
		at[s.key] = s.line
		k, ok := known[s.key]
		if !ok {
			problems = append(problems, Problem{file, s.line, s.key, unknownKey(s.key)})
			continue
		}
		err := s.value.checkLength()
		if err == nil {
			err = k.set(c, s.value)
		}
		if err != nil {
			problems = append(problems, Problem{file, s.line, s.key, err.Error()})
		}
	}
	for _, k := range keys() {
		if _, ok := at[k.name]; !ok && k.required != "" {
			problems = append(problems, Problem{file, 1, k.name, "is missing: " + k.required})
		}
	}
	bad := map[string]bool{}
	for _, p := range problems {
		bad[p.Key] = true
	}
	c.finish(file)
	c.judge(file, at, bad, &problems)
	if len(problems) == 0 {
		problems = strictSyntax(file, data)
	}
	problems.sort()
	c.Warnings.sort()
	if len(problems) > problemsMax {
		problems = problems[:problemsMax]
	}
	return c, at, problems
}

// finish fills in what follows from other keys.
func (c *Config) finish(file string) {
	if c.ClusterAdvertise == "" {
		c.ClusterAdvertise = c.ClusterListen
	}
	if c.GossipAdvertise == "" {
		c.GossipAdvertise = c.GossipListen
	}
	dir, err := filepath.Abs(filepath.Dir(file))
	if err != nil {
		dir = filepath.Dir(file) // no working directory: relative paths stay so
	}
	for _, path := range []*string{&c.DataDir, &c.SMTPCert, &c.SMTPKey, &c.GossipKeyFile, &c.CA, &c.Cert, &c.Key, &c.AdminSocket} {
		*path = absolute(dir, *path)
	}
}

// judge looks at what only several keys together can get wrong. Keys that are
// bad by themselves are left out: one mistake gets one message.
func (c *Config) judge(file string, at lines, bad map[string]bool, problems *Problems) {
	refuse := func(key, format string, args ...any) {
		*problems = append(*problems, Problem{file, at.of(key), key, fmt.Sprintf(format, args...)})
	}
	warn := func(key, format string, args ...any) {
		c.Warnings = append(c.Warnings, Problem{file, at.of(key), key, fmt.Sprintf(format, args...)})
	}
	good := func(keys ...string) bool {
		for _, k := range keys {
			if bad[k] {
				return false
			}
		}
		return true
	}

	if good("max_message_size", "bytes_in_flight") && c.BytesInFlight < c.MaxMessageSize {
		refuse("bytes_in_flight", "%s is less than max_message_size, %s, which could then never be accepted: raise it",
			formatSize(c.BytesInFlight), formatSize(c.MaxMessageSize))
	}
	if good("lease_duration", "doubt_wait") && c.DoubtWait < c.LeaseDuration {
		refuse("doubt_wait", "%s is less than lease_duration, %s: a message in doubt would be sent again while its first holder may still act; raise it",
			shortDuration(c.DoubtWait), shortDuration(c.LeaseDuration))
	}
	if good("smtp_cert", "smtp_key") {
		switch {
		case c.SMTPCert != "" && c.SMTPKey == "":
			refuse("smtp_cert", "has no key: give smtp_key as well, or neither")
		case c.SMTPCert == "" && c.SMTPKey != "":
			refuse("smtp_key", "has no certificate: give smtp_cert as well, or neither")
		case c.SMTPCert == "" && len(c.ATRNListen) > 0 && good("atrn_listen"):
			refuse("atrn_listen", "needs smtp_cert and smtp_key: nobody is asked for a password in the clear")
		case c.SMTPCert == "":
			warn("smtp_cert", "is not given: STARTTLS is not offered, and mail comes in the clear")
		}
	}
	if len(c.AdminSocket) > socketBytesMax {
		refuse("admin_socket", "is a path of %d octets: a socket's has at most %d, choose a shorter one", len(c.AdminSocket), socketBytesMax)
	}
	c.judgeAddresses(good, refuse)
	if good("bootstrap_expect", "join") {
		switch n := c.BootstrapExpect; {
		case n%2 == 0:
			warn("bootstrap_expect", "%d nodes outlive the loss of no more than %d do: use %d or %d", n, n-1, n-1, n+1)
		case n == 1:
			warn("bootstrap_expect", "one node alone keeps one copy: a lost disk loses mail; use 3")
		}
		if c.BootstrapExpect > 1 && len(c.Join) == 0 {
			warn("join", "is empty: this node waits for others to join it; list at least two of them")
		}
	}
	for _, p := range c.ExemptNetworks {
		if p.Bits() == 0 {
			warn("exempt_networks", "%s exempts everybody: connections_per_client has no effect", p)
		}
	}
	if good("disk_free_min_percent") && c.DiskFreeMinPercent == 0 {
		warn("disk_free_min_percent", "is 0: mail is taken until the disk is full; keep some free")
	}
}

// judgeAddresses refuses two listeners on one address, and an advertised
// address that nobody can dial.
func (c *Config) judgeAddresses(good func(...string) bool, refuse func(key, format string, args ...any)) {
	if good("cluster_listen", "cluster_advertise") && c.ClusterListen != "" && dialAddress(c.ClusterAdvertise) != nil {
		refuse("cluster_advertise", "is missing, and cluster_listen, %q, names no host that others could dial: give this node's address", c.ClusterListen)
	}
	if good("gossip_listen", "gossip_advertise") && c.GossipListen != "" && dialAddress(c.GossipAdvertise) != nil {
		refuse("gossip_advertise", "is missing, and gossip_listen, %q, names no host that others could dial: give this node's address", c.GossipListen)
	}
	type listener struct{ key, address string }
	var before []listener
	check := func(key, address string) {
		if address == "" || !good(key) {
			return
		}
		for _, b := range before {
			if collide(b.address, address) {
				refuse(key, "%q collides with %s, %q: use another port", address, b.key, b.address)
				return
			}
		}
		before = append(before, listener{key, address})
	}
	for _, a := range c.SMTPListen {
		check("smtp_listen", a)
	}
	for _, a := range c.ATRNListen {
		check("atrn_listen", a)
	}
	check("cluster_listen", c.ClusterListen)
	check("gossip_listen", c.GossipListen)
}

// collide reports whether two listeners want the same port of the same address.
func collide(a, b string) bool {
	hostA, portA, errA := net.SplitHostPort(a)
	hostB, portB, errB := net.SplitHostPort(b)
	if errA != nil || errB != nil || portA != portB {
		return false
	}
	return hostA == hostB || unspecified(hostA) || unspecified(hostB)
}
