package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// kindNames are the TOML types in the words of somebody who edits a file.
var kindNames = map[unstable.Kind]string{
	unstable.String:        "a string",
	unstable.Integer:       "an integer",
	unstable.Float:         "a decimal number",
	unstable.Bool:          "true or false",
	unstable.Array:         "a list",
	unstable.InlineTable:   "a table",
	unstable.LocalDate:     "a date",
	unstable.LocalTime:     "a time of day",
	unstable.LocalDateTime: "a date and time",
	unstable.DateTime:      "a date and time",
}

func wrongType(v value, want string) error {
	got, ok := kindNames[v.kind]
	if !ok {
		got = "something else"
	}
	return fmt.Errorf("is %s: write %s", got, want)
}

// valueBytesMax bounds a value, and with it what a message quotes. No path is
// longer on Linux.
const valueBytesMax = 4096

// checkLength is asked before a value is looked at in any other way.
func (v value) checkLength() error {
	if n := len(v.text); n > valueBytesMax {
		return fmt.Errorf("has %d octets: write at most %d", n, valueBytesMax)
	}
	for _, item := range v.items {
		if err := item.checkLength(); err != nil {
			return err
		}
	}
	return nil
}

func setString(to *string, v value) error {
	if v.kind != unstable.String {
		return wrongType(v, `a string, as in "..."`)
	}
	if v.text == "" {
		return errors.New("is empty: give a value or remove the key")
	}
	if strings.ContainsFunc(v.text, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return errors.New("has a control character: remove it")
	}
	*to = v.text
	return nil
}

// nameBytesMax is the longest name of a cluster or node. They stand in
// certificates, gossip messages and log lines.
const nameBytesMax = 32

func setName(to *string, v value) error {
	if err := setString(to, v); err != nil {
		return err
	}
	valid := len(v.text) <= nameBytesMax
	for i := range len(v.text) {
		c := v.text[i]
		inner := i > 0 && i < len(v.text)-1
		valid = valid && ('a' <= c && c <= 'z' || '0' <= c && c <= '9' || c == '-' && inner)
	}
	if !valid {
		return fmt.Errorf("%q is no name: use 1 to %d of a-z, 0-9 and, inside, -", v.text, nameBytesMax)
	}
	return nil
}

func setHostname(c *Config, v value) error {
	var s string
	if err := setString(&s, v); err != nil {
		return err
	}
	d, err := mail.ParseDomain(s)
	if err != nil || net.ParseIP(s) != nil {
		return fmt.Errorf(`%q is no host name: write one as in "mx1.example.net"`, s)
	}
	c.Hostname = d
	return nil
}

// socketBytesMax is the longest path of a unix socket: sun_path without its NUL.
const socketBytesMax = 107

func setAdminSocket(c *Config, v value) error {
	return setString(&c.AdminSocket, v) // its length is checked when it is absolute
}

// setSmarthost takes an empty string for what it is without the key.
func setSmarthost(c *Config, v value) error {
	if v.kind == unstable.String && v.text == "" {
		c.Smarthost = ""
		return nil
	}
	return setAddress(&c.Smarthost, v, dialAddress)
}

func setWord[W ~string](to *W, v value, words ...W) error {
	var s string
	if err := setString(&s, v); err != nil {
		return err
	}
	if !slices.Contains(words, W(s)) {
		quoted := make([]string, len(words))
		for i, w := range words {
			quoted[i] = strconv.Quote(string(w))
		}
		return fmt.Errorf("%q is none of its values: write %s", s, strings.Join(quoted, " or "))
	}
	*to = W(s)
	return nil
}

func setInt(to *int, v value, least, most int) error {
	if v.kind != unstable.Integer {
		return wrongType(v, fmt.Sprintf("an integer from %d to %d", least, most))
	}
	n, err := strconv.ParseInt(strings.ReplaceAll(v.text, "_", ""), 0, 64)
	if err != nil || n < int64(least) || n > int64(most) {
		return fmt.Errorf("%s is out of range: write an integer from %d to %d", v.text, least, most)
	}
	*to = int(n)
	return nil
}

func setDuration(to *time.Duration, v value, least, most time.Duration) error {
	want := fmt.Sprintf(`a duration from %q to %q, as in "90s"`, shortDuration(least), shortDuration(most))
	if v.kind != unstable.String {
		return wrongType(v, want)
	}
	d, err := time.ParseDuration(v.text)
	if err != nil {
		return fmt.Errorf("%q is no duration: write %s", v.text, want)
	}
	if d < least || d > most {
		return fmt.Errorf("%q is out of range: write %s", v.text, want)
	}
	*to = d
	return nil
}

// shortDuration writes 10m for what String writes as 10m0s.
func shortDuration(d time.Duration) string {
	switch {
	case d%time.Hour == 0:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d%time.Minute == 0:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return d.String()
}

// sizeUnits are the units of a size, the largest first.
var sizeUnits = []struct {
	name string
	size mail.ByteSize
}{{"GiB", mail.GiB}, {"MiB", mail.MiB}, {"KiB", mail.KiB}}

func formatSize(s mail.ByteSize) string {
	for _, u := range sizeUnits {
		if s >= u.size && s%u.size == 0 {
			return fmt.Sprintf("%d%s", s/u.size, u.name)
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

func setSize(to *mail.ByteSize, v value, least, most mail.ByteSize) error {
	want := fmt.Sprintf("a size from %q to %q", formatSize(least), formatSize(most))
	if v.kind != unstable.String {
		return wrongType(v, want)
	}
	for _, u := range sizeUnits {
		digits, ok := strings.CutSuffix(v.text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(strings.TrimSpace(digits), 10, 64)
		switch {
		case errors.Is(err, strconv.ErrSyntax):
			return fmt.Errorf("%q is no size: write %s", v.text, want)
		case err != nil || n > math.MaxInt64/int64(u.size) || n < 0,
			mail.ByteSize(n)*u.size < least, mail.ByteSize(n)*u.size > most:
			return fmt.Errorf("%q is out of range: write %s", v.text, want)
		}
		*to = mail.ByteSize(n) * u.size
		return nil
	}
	return fmt.Errorf("%q is no size: write %s, in KiB, MiB or GiB", v.text, want)
}

// listMax bounds every list of the file.
const listMax = 64

func setList(v value, least int, example string, each func(string) error) error {
	if v.kind != unstable.Array {
		return wrongType(v, "a list, as in "+example)
	}
	if len(v.items) < least {
		return errors.New("is empty: write a list, as in " + example)
	}
	if len(v.items) > listMax {
		return fmt.Errorf("has %d entries: write at most %d", len(v.items), listMax)
	}
	seen := map[string]bool{}
	for i, item := range v.items {
		var s string
		if err := setString(&s, item); err != nil {
			return fmt.Errorf("entry %d %w", i+1, err)
		}
		if seen[s] {
			return fmt.Errorf("entry %d, %q, is listed twice: remove one", i+1, s)
		}
		seen[s] = true
		if err := each(s); err != nil {
			return fmt.Errorf("entry %d, %w", i+1, err)
		}
	}
	return nil
}

func setAddress(to *string, v value, check func(string) error) error {
	var s string
	if err := setString(&s, v); err != nil {
		return err
	}
	if err := check(s); err != nil {
		return err
	}
	*to = s
	return nil
}

func setAddresses(to *[]string, v value, least int, check func(string) error) error {
	var all []string
	err := setList(v, least, `["192.0.2.1:25"]`, func(s string) error {
		all = append(all, s)
		return check(s)
	})
	if err == nil {
		*to = all
	}
	return err
}

// splitAddress reads HOST:PORT with a host that may be empty.
func splitAddress(s string) (host string, err error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "", fmt.Errorf(`%q is no HOST:PORT: write it as in "192.0.2.1:25" or "[2001:db8::1]:25"`, s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q has no port from 1 to 65535: give one", s)
	}
	if host == "" {
		return "", nil
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return host, nil
	}
	if _, err := mail.ParseDomain(host); err != nil || strings.Trim(host, "0123456789.") == "" {
		return "", fmt.Errorf("%q: %q is neither an IP address nor a host name", s, host)
	}
	return host, nil
}

func listenAddress(s string) error {
	_, err := splitAddress(s)
	return err
}

// dialAddress refuses what can be listened on but not dialled.
func dialAddress(s string) error {
	host, err := splitAddress(s)
	if err != nil {
		return err
	}
	if unspecified(host) {
		return fmt.Errorf("%q has no host that others could dial: give this node's address", s)
	}
	return nil
}

func unspecified(host string) bool {
	addr, err := netip.ParseAddr(host)
	return host == "" || err == nil && addr.IsUnspecified()
}

func setExemptNetworks(c *Config, v value) error {
	var all []netip.Prefix
	err := setList(v, 0, `["192.0.2.0/24"]`, func(s string) error {
		p, err := netip.ParsePrefix(s)
		if addr, addrErr := netip.ParseAddr(s); addrErr == nil && addr.Zone() == "" {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return fmt.Errorf(`%q is no network: write it as in "192.0.2.0/24" or "2001:db8::/32"`, s)
		}
		if p != p.Masked() {
			return fmt.Errorf("%q has bits outside of its mask: write %q", s, p.Masked())
		}
		all = append(all, p)
		return nil
	})
	if err == nil {
		c.ExemptNetworks = all
	}
	return err
}

// absolute resolves a path of the file against the file's own directory, so
// that it means the same wherever the daemon is started.
func absolute(dir, path string) string {
	if path == "" || filepath.IsAbs(path) {
		return path
	}
	return filepath.Join(dir, path)
}
