package config

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// minimal is the shortest file that is accepted. Its lines are referred to below.
const minimal = `cluster = "example"
node = "mx1"
hostname = "mx1.example.net"
data_dir = "/var/lib/holdfast"
smtp_listen = [":25"]
cluster_listen = "192.0.2.1:7420"
gossip_listen = "192.0.2.1:7421"
gossip_key_file = "gossip.key"
ca = "ca.crt"
cert = "node.crt"
key = "node.key"
join = ["192.0.2.2:7421"]
smtp_cert = "smtp.crt"
smtp_key = "smtp.key"
`

// line of what is appended to minimal.
const next = 15

func TestExampleHasEveryKeyAndItsDefault(t *testing.T) {
	c, err := Parse("example.toml", []byte(Example()))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.Warnings) > 0 {
		t.Errorf("the example warns: %v", c.Warnings)
	}
	for _, k := range keys() {
		if !regexp.MustCompile(`(?m)^(# )?` + k.name + ` = `).MatchString(Example()) {
			t.Errorf("the example does not have %s", k.name)
		}
	}
	// What is commented out is the default: uncommented it changes nothing.
	commented := regexp.MustCompile(`(?m)^# ([a-z_]+ = )`)
	all, err := Parse("example.toml", []byte(commented.ReplaceAllString(Example(), "$1")))
	if err != nil {
		t.Fatal(err)
	}
	if len(c.ExemptNetworks) == 0 {
		c.ExemptNetworks = all.ExemptNetworks // nil and empty
	}
	if !reflect.DeepEqual(c, all) {
		t.Errorf("a default in the example is not ours:\n%+v\n%+v", c, all)
	}
}

func TestEveryFieldHasAKey(t *testing.T) {
	fields := reflect.TypeFor[Config]()
	names := map[string]bool{}
	for _, k := range keys() {
		names[strings.ReplaceAll(k.name, "_", "")] = true
	}
	settings := 0
	for i := range fields.NumField() {
		f := fields.Field(i)
		if !f.IsExported() || f.Name == "Warnings" {
			continue
		}
		settings++
		if !names[strings.ToLower(f.Name)] {
			t.Errorf("field %s has no key of its name", f.Name)
		}
	}
	if len(names) != settings {
		t.Errorf("%d keys for %d fields", len(names), settings)
	}
}

func TestValuesAreRead(t *testing.T) {
	c, err := Parse("/etc/holdfast/holdfast.toml", []byte(minimal+`
max_message_size = "10MiB"
bytes_in_flight = "1GiB"
recipients_max = 0x100
lease_duration = "1m30s"
exempt_networks = ["10.0.0.0/8", "2001:db8::1"]
latency = "lan"
log_format = "json"
bootstrap_expect = 5
admin_socket = "run/admin.sock"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Cluster, want.Node, want.Hostname = "example", "mx1", "mx1.example.net"
	want.DataDir = "/var/lib/holdfast"
	want.SMTPListen = []string{":25"}
	want.SMTPCert, want.SMTPKey = "/etc/holdfast/smtp.crt", "/etc/holdfast/smtp.key"
	want.ClusterListen, want.ClusterAdvertise = "192.0.2.1:7420", "192.0.2.1:7420"
	want.GossipListen, want.GossipAdvertise = "192.0.2.1:7421", "192.0.2.1:7421"
	want.GossipKeyFile = "/etc/holdfast/gossip.key"
	want.CA, want.Cert, want.Key = "/etc/holdfast/ca.crt", "/etc/holdfast/node.crt", "/etc/holdfast/node.key"
	want.Join = []string{"192.0.2.2:7421"}
	want.BootstrapExpect = 5
	want.Latency, want.LogFormat = LAN, LogJSON
	want.AdminSocket = "/etc/holdfast/run/admin.sock"
	want.MaxMessageSize, want.BytesInFlight = 10*mail.MiB, mail.GiB
	want.RecipientsMax = 256
	want.LeaseDuration = 90 * time.Second
	want.ExemptNetworks = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("2001:db8::1/128")}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

func TestCRLFAndQuotedKeysAreRead(t *testing.T) {
	file := strings.ReplaceAll(strings.Replace(minimal, "cluster = ", `"cluster" = `, 1), "\n", "\r\n")
	if _, err := Parse("f", []byte(file)); err != nil {
		t.Error(err)
	}
}

// TestBadFiles holds what an administrator reads about each mistake.
func TestBadFiles(t *testing.T) {
	add := func(lines string) string { return minimal + lines + "\n" }
	without := func(key string) string {
		return regexp.MustCompile(`(?m)^`+key+` = .*$`).ReplaceAllString(minimal, "#")
	}
	set := func(key, value string) string {
		return regexp.MustCompile(`(?m)^`+key+` = .*$`).ReplaceAllLiteralString(minimal, key+" = "+value)
	}
	for _, test := range []struct {
		name, file string
		want       []string
	}{
		{"unknown key", add(`max_mesage_size = "1MiB"`), []string{
			`f:15: max_mesage_size: is no known key: did you mean "max_message_size"?`}},
		{"unknown key, nothing like it", add(`xyzzy = 1`), []string{
			`f:15: xyzzy: is no known key: remove it, or see the example file for the keys there are`}},
		{"all problems at once", add("xyzzy = 1\nlatency = \"far\"\nlease_batch = 0"), []string{
			`f:15: xyzzy: is no known key: remove it, or see the example file for the keys there are`,
			`f:16: latency: "far" is none of its values: write "lan" or "wan"`,
			`f:17: lease_batch: 0 is out of range: write an integer from 1 to 1000`}},
		{"duplicate key", add("latency = \"lan\"\nlatency = \"wan\""), []string{
			`f:16: latency: is given twice, first on line 15: remove one`}},
		{"duplicate key, quoted", add("latency = \"lan\"\n'latency' = \"wan\""), []string{
			`f:16: latency: is given twice, first on line 15: remove one`}},
		{"dotted key", add("smtp.listen = 1"), []string{
			`f:15: smtp.listen: is no known key: did you mean "smtp_listen"?`}},
		{"table", add("[limits]\nlease_batch = 1"), []string{
			`f:15: limits: is a table: this file has none, write every key at the top level`}},
		{"array of tables", add("[[domain]]"), []string{
			`f:15: domain: is a table: this file has none, write every key at the top level`}},
		{"no TOML", add("cluster: example"), []string{
			`f:15: is not TOML: expected '=' after key`}},
		{"YAML", "---\na: &a [x]\nb: [*a,*a]\n", []string{`f:1: is not TOML: `}},
		{"open string", add(`log_format = "text`), []string{`f:15: is not TOML: `}},
		{"bad number", add(`lease_batch = 1__0`), []string{`f:15: is not TOML: `}},
		{"NUL", add("# \x00"), []string{`f:15: is not TOML: `}},
		{"not UTF-8", add("log_format = \"te\xffxt\""), []string{`f:15: is not UTF-8: save the file as UTF-8`}},
		{"wrong type: string", set("node", `1`), []string{`f:2: node: is an integer: write a string, as in "..."`}},
		{"wrong type: integer", add(`lease_batch = "64"`), []string{
			`f:15: lease_batch: is a string: write an integer from 1 to 1000`}},
		{"wrong type: list", set("smtp_listen", `":25"`), []string{
			`f:5: smtp_listen: is a string: write a list, as in ["192.0.2.1:25"]`}},
		{"wrong type: entry", set("smtp_listen", `[25]`), []string{
			`f:5: smtp_listen: entry 1 is an integer: write a string, as in "..."`}},
		{"wrong type: size", add(`max_message_size = 52428800`), []string{
			`f:15: max_message_size: is an integer: write a size from "64KiB" to "1GiB"`}},
		{"wrong type: duration", add(`lease_duration = 60`), []string{
			`f:15: lease_duration: is an integer: write a duration from "1s" to "10m", as in "90s"`}},
		{"wrong type: others", add("lease_batch = 1.5\nrecipients_max = true\nlatency = {a = 1}\nlog_format = 2026-08-01"), []string{
			`f:15: lease_batch: is a decimal number: write an integer from 1 to 1000`,
			`f:16: recipients_max: is true or false: write an integer from 100 to 10000`,
			`f:17: latency: is a table: write a string, as in "..."`,
			`f:18: log_format: is a date: write a string, as in "..."`}},
		{"missing", without("node"), []string{`f:1: node: is missing: name this node, as its certificate does`}},
		{"empty value", set("cluster", `""`), []string{`f:1: cluster: is empty: give a value or remove the key`}},
		{"control character", set("data_dir", `"/var\u0007"`), []string{`f:4: data_dir: has a control character: remove it`}},
		{"cluster name", set("cluster", `"Example"`), []string{`f:1: cluster: "Example" is no name: use 1 to 32 of a-z, 0-9 and, inside, -`}},
		{"node name too long", set("node", `"`+strings.Repeat("a", 33)+`"`), []string{`f:2: node: "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa" is no name: use 1 to 32 of a-z, 0-9 and, inside, -`}},
		{"node name with a slash", set("node", `"a/b"`), []string{`f:2: node: "a/b" is no name: use 1 to 32 of a-z, 0-9 and, inside, -`}},
		{"hostname", set("hostname", `"mx1..example"`), []string{`f:3: hostname: "mx1..example" is no host name: write one as in "mx1.example.net"`}},
		{"hostname is an address", set("hostname", `"192.0.2.1"`), []string{`f:3: hostname: "192.0.2.1" is no host name: write one as in "mx1.example.net"`}},
		{"no port", set("cluster_listen", `"192.0.2.1"`), []string{
			`f:6: cluster_listen: "192.0.2.1" is no HOST:PORT: write it as in "192.0.2.1:25" or "[2001:db8::1]:25"`}},
		{"port 0", set("cluster_listen", `"192.0.2.1:0"`), []string{`f:6: cluster_listen: "192.0.2.1:0" has no port from 1 to 65535: give one`}},
		{"port 65536", set("cluster_listen", `"192.0.2.1:65536"`), []string{`f:6: cluster_listen: "192.0.2.1:65536" has no port from 1 to 65535: give one`}},
		{"bad host", set("cluster_listen", `"192.0.2.300:1"`), []string{`f:6: cluster_listen: "192.0.2.300:1": "192.0.2.300" is neither an IP address nor a host name`}},
		{"join without host", set("join", `[":7421"]`), []string{
			`f:12: join: entry 1, ":7421" has no host that others could dial: give this node's address`}},
		{"join twice", set("join", `["a:1", "a:1"]`), []string{`f:12: join: entry 2, "a:1", is listed twice: remove one`}},
		{"nothing to listen on", set("smtp_listen", `[]`), []string{`f:5: smtp_listen: is empty: write a list, as in ["192.0.2.1:25"]`}},
		{"cannot advertise", set("cluster_listen", `":7420"`), []string{
			`f:1: cluster_advertise: is missing, and cluster_listen, ":7420", names no host that others could dial: give this node's address`}},
		{"advertises nothing", add(`gossip_advertise = "0.0.0.0:7421"`), []string{
			`f:15: gossip_advertise: "0.0.0.0:7421" has no host that others could dial: give this node's address`}},
		{"ports collide", set("gossip_listen", `"192.0.2.1:7420"`), []string{
			`f:7: gossip_listen: "192.0.2.1:7420" collides with cluster_listen, "192.0.2.1:7420": use another port`}},
		{"ports collide by wildcard", set("gossip_listen", `"192.0.2.1:25"`), []string{
			`f:7: gossip_listen: "192.0.2.1:25" collides with smtp_listen, ":25": use another port`}},
		{"negative size", add(`max_message_size = "-1MiB"`), []string{
			`f:15: max_message_size: "-1MiB" is out of range: write a size from "64KiB" to "1GiB"`}},
		{"size 0", add(`max_message_size = "0MiB"`), []string{
			`f:15: max_message_size: "0MiB" is out of range: write a size from "64KiB" to "1GiB"`}},
		{"size overflows", add(`max_message_size = "9223372036854775807GiB"`), []string{
			`f:15: max_message_size: "9223372036854775807GiB" is out of range: write a size from "64KiB" to "1GiB"`}},
		{"size of 2^70", add(`max_message_size = "1180591620717411303424GiB"`), []string{
			`f:15: max_message_size: "1180591620717411303424GiB" is out of range: write a size from "64KiB" to "1GiB"`}},
		{"unit", add(`max_message_size = "50MB"`), []string{
			`f:15: max_message_size: "50MB" is no size: write a size from "64KiB" to "1GiB", in KiB, MiB or GiB`}},
		{"no number", add(`max_message_size = "MiB"`), []string{
			`f:15: max_message_size: "MiB" is no size: write a size from "64KiB" to "1GiB"`}},
		{"less in flight than one message", add("max_message_size = \"20MiB\"\nbytes_in_flight = \"10MiB\""), []string{
			`f:16: bytes_in_flight: 10MiB is less than max_message_size, 20MiB, which could then never be accepted: raise it`}},
		{"negative duration", add(`commit_patience = "-60s"`), []string{
			`f:15: commit_patience: "-60s" is out of range: write a duration from "1s" to "5m", as in "90s"`}},
		{"absurd duration", add(`lease_duration = "87600h"`), []string{
			`f:15: lease_duration: "87600h" is out of range: write a duration from "1s" to "10m", as in "90s"`}},
		{"no unit", add(`lease_duration = "60"`), []string{
			`f:15: lease_duration: "60" is no duration: write a duration from "1s" to "10m", as in "90s"`}},
		{"lease outlives doubt", add("lease_duration = \"60s\"\ndoubt_wait = \"30s\""), []string{
			`f:16: doubt_wait: 30s is less than lease_duration, 1m: a message in doubt would be sent again while its first holder may still act; raise it`}},
		{"voters", add(`bootstrap_expect = 9`), []string{`f:15: bootstrap_expect: 9 is out of range: write an integer from 1 to 7`}},
		{"huge integer", add(`lease_batch = 9223372036854775807`), []string{
			`f:15: lease_batch: 9223372036854775807 is out of range: write an integer from 1 to 1000`}},
		{"network", add(`exempt_networks = ["10.0.0.1/8"]`), []string{
			`f:15: exempt_networks: entry 1, "10.0.0.1/8" has bits outside of its mask: write "10.0.0.0/8"`}},
		{"no network", add(`exempt_networks = ["localhost"]`), []string{
			`f:15: exempt_networks: entry 1, "localhost" is no network: write it as in "192.0.2.0/24" or "2001:db8::/32"`}},
		{"key without certificate", without("smtp_cert"), []string{
			`f:14: smtp_key: has no certificate: give smtp_cert as well, or neither`}},
		{"certificate without key", without("smtp_key"), []string{
			`f:13: smtp_cert: has no key: give smtp_key as well, or neither`}},
		{"callers in the clear", strings.NewReplacer("smtp_cert", "#", "smtp_key", "#").Replace(minimal) + "atrn_listen = [\":366\"]\n", []string{
			`f:15: atrn_listen: needs smtp_cert and smtp_key: nobody is asked for a password in the clear`}},
		{"callers where mail is taken", add(`atrn_listen = [":366", "192.0.2.1:25"]`), []string{
			`f:15: atrn_listen: "192.0.2.1:25" collides with smtp_listen, ":25": use another port`}},
		{"socket path too long", add(`admin_socket = "/` + strings.Repeat("a", 107) + `"`), []string{
			`f:15: admin_socket: is a path of 108 octets: a socket's has at most 107, choose a shorter one`}},
		{"a value over several lines", set("join", "[\n\"a:1\",\n# text\n\"b\"]"), []string{
			`f:12: join: entry 2, "b" is no HOST:PORT: write it as in "192.0.2.1:25" or "[2001:db8::1]:25"`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := Parse("f", []byte(test.file))
			if c != nil {
				t.Error("a bad file gives a configuration")
			}
			var problems Problems
			if !errors.As(err, &problems) {
				t.Fatalf("error is %v", err)
			}
			if len(problems) != len(test.want) {
				t.Errorf("%d problems, want %d", len(problems), len(test.want))
			}
			for i, p := range problems {
				if i < len(test.want) && !strings.HasPrefix(p.Error(), test.want[i]) {
					t.Errorf("got  %s\nwant %s", p, test.want[i])
				}
			}
		})
	}
}

// TestHostileTextIsEscaped: what an administrator reads on a terminal about a
// file must not be able to command it, wherever in the file it stands.
func TestHostileTextIsEscaped(t *testing.T) {
	for name, file := range map[string]string{
		"key":           `"\u001b[31mred" = 1`,
		"key, 8-bit":    `"\u009b31m" = 1`,
		"key, lines":    `"a\nf:1: all is well" = 1`,
		"key, reversed": `"\u202e" = 1`,
		"table":         "[\"\\u001b]0;title\\u0007\"]",
		"value":         `node = "\u001b[31m"`,
		"log_format":    `log_format = "\u001b[2J"`,
		"syntax":        "a = \x1b[31m",
		"raw":           "\"\x1b\" = 1",
		"not UTF-8":     "\xff\x1b",
	} {
		_, err := Parse("\x1b[31mf", []byte(file))
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, line := range strings.Split(err.Error(), "\n") {
			if !strings.HasPrefix(line, `\x1b[31mf:`) {
				t.Errorf("%s: a line that is no problem of ours: %q", name, line)
			}
			if i := strings.IndexFunc(line, func(r rune) bool { return !strconv.IsPrint(r) }); i >= 0 {
				t.Errorf("%s: raw %q in %q", name, line[i], line)
			}
		}
	}
	if got, want := Printable("a\x1b\xff\u202e\n\"\\ü"), `a\x1b\xff\u202e\n"\ü`; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestEmptyFileNamesEveryMissingKey(t *testing.T) {
	for _, file := range []string{"", "\n", "# nothing\r\n"} {
		_, err := Parse("f", []byte(file))
		var problems Problems
		if !errors.As(err, &problems) {
			t.Fatalf("error is %v", err)
		}
		missing := map[string]bool{}
		for _, p := range problems {
			missing[p.Key] = true
			if !strings.HasPrefix(p.Error(), "f:1: "+p.Key+": is missing: ") {
				t.Errorf("%s", p)
			}
		}
		for _, k := range keys() {
			if (k.required != "") != missing[k.name] {
				t.Errorf("%q: %s reported missing: %v", file, k.name, missing[k.name])
			}
		}
	}
}

// TestLargeHostileFiles holds that a file of the largest size costs moments and
// a short answer. For some of these the decoder alone takes minutes, so what
// this test would do is not end.
func TestLargeHostileFiles(t *testing.T) {
	fill := func(before, unit, after string) string {
		return before + strings.Repeat(unit, (int(fileBytesMax)-len(before)-len(after))/len(unit)) + after
	}
	var keys strings.Builder
	for i := 0; keys.Len() < int(fileBytesMax)-20; i++ {
		fmt.Fprintf(&keys, "key%d=1\n", i)
	}
	for name, file := range map[string]string{
		"keys":           keys.String(),
		"lines":          fill("", "\n", "x"),
		"nested lists":   fill("a=", "[", ""),
		"nested tables":  fill("a=", "{a=", ""),
		"a long key":     fill("a", ".a", "=1"),
		"a long list":    fill("join=[", "1,", "]"),
		"a long string":  fill(`node="`, "a", `"`),
		"a long number":  fill("lease_batch=", "1", ""),
		"list of tables": fill("join=[", "{a=1},", "]"),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f", []byte(file))
			var problems Problems
			if !errors.As(err, &problems) || len(problems) > problemsMax || len(err.Error()) > 32<<10 {
				t.Errorf("%d problems, %d octets", len(problems), len(err.Error()))
			}
		})
	}
}

func TestWarnings(t *testing.T) {
	for _, test := range []struct{ file, want string }{
		{minimal + `bootstrap_expect = 4`, `f:15: bootstrap_expect: 4 nodes outlive the loss of no more than 3 do: use 3 or 5`},
		{minimal + `bootstrap_expect = 1`, `f:15: bootstrap_expect: one node alone keeps one copy: a lost disk loses mail; use 3`},
		{minimal + `exempt_networks = ["0.0.0.0/0"]`, `f:15: exempt_networks: 0.0.0.0/0 exempts everybody: connections_per_client has no effect`},
		{minimal + `disk_free_min_percent = 0`, `f:15: disk_free_min_percent: is 0: mail is taken until the disk is full; keep some free`},
		{strings.NewReplacer("smtp_cert", "#", "smtp_key", "#").Replace(minimal),
			`f:1: smtp_cert: is not given: STARTTLS is not offered, and mail comes in the clear`},
		{strings.Replace(minimal, "join", "#", 1), `f:1: join: is empty: this node waits for others to join it; list at least two of them`},
		{minimal, ``},
	} {
		c, err := Parse("f", []byte(test.file))
		if err != nil {
			t.Error(err)
			continue
		}
		if got := c.Warnings.Error(); got != test.want {
			t.Errorf("got  %q\nwant %q", got, test.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(minimal))
	f.Add([]byte(Example()))
	f.Add([]byte("a.b.'c' = [[1], {x = 1}]\n[t]\n[[u]]"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse("f", data)
		if (c == nil) == (err == nil) {
			t.Errorf("configuration %v, error %v", c, err)
		}
	})
}

func TestFilesThatAreNone(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, fileBytesMax+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "none"): "does not exist: correct the path, or make the file",
		dir:                        "is a directory: give the path of a file",
		large:                      "is larger than 1MiB: it is no file of ours",
		os.DevNull:                 "is no regular file: give the path of one",
		filepath.Join(large, "x"):  "cannot be read: open " + filepath.Join(large, "x") + ": not a directory",
	} {
		_, err := Load(path)
		if err == nil || err.Error() != path+": "+want {
			t.Errorf("got  %v\nwant %s: %s", err, path, want)
		}
	}
}
