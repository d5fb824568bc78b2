//go:build e2e

package e2e

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
)

// A postfix is one instance of Postfix with its own configuration and queue.
type postfix struct {
	t      *testing.T
	name   string
	config string // directory
	queue  string // directory
	log    string // file
}

// services are those of Debian's master.cf that these instances need, none of
// them in a chroot.
const services = `
pickup    unix  n  -  n  60     1  pickup
cleanup   unix  n  -  n  -      0  cleanup
qmgr      unix  n  -  n  300    1  qmgr
tlsmgr    unix  -  -  n  1000?  1  tlsmgr
rewrite   unix  -  -  n  -      -  trivial-rewrite
bounce    unix  -  -  n  -      0  bounce
defer     unix  -  -  n  -      0  bounce
trace     unix  -  -  n  -      0  bounce
verify    unix  -  -  n  -      1  verify
flush     unix  n  -  n  1000?  0  flush
proxymap  unix  -  -  n  -      -  proxymap
proxywrite unix -  -  n  -      1  proxymap
smtp      unix  -  -  n  -      -  smtp
relay     unix  -  -  n  -      -  smtp
showq     unix  n  -  n  -      -  showq
error     unix  -  -  n  -      -  error
retry     unix  -  -  n  -      -  error
discard   unix  -  -  n  -      -  discard
local     unix  -  n  n  -      -  local
virtual   unix  -  n  n  -      -  virtual
anvil     unix  -  -  n  -      1  anvil
scache    unix  -  -  n  -      1  scache
postlog   unix-dgram n - n -    1  postlogd
`

// newPostfix makes an instance that listens at address, port 25. It is not
// started.
func newPostfix(t *testing.T, dir, name, address string, settings map[string]string) *postfix {
	t.Helper()
	if _, err := exec.LookPath("postfix"); err != nil {
		t.Fatalf("the postfix package is missing: %v", err)
	}
	base := filepath.Join(dir, name)
	p := &postfix{t: t, name: name, config: filepath.Join(base, "etc"), queue: filepath.Join(base, "queue"), log: filepath.Join(base, "log")}
	data := filepath.Join(base, "data")
	for _, d := range []string{p.config, p.queue, data} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	owner, err := user.Lookup("postfix")
	if err != nil {
		t.Fatalf("the postfix package is not set up: %v", err)
	}
	uid, _ := strconv.Atoi(owner.Uid)
	if err := os.Chown(data, uid, -1); err != nil {
		t.Fatal(err)
	}
	cert, key, err := fleet.SelfSigned(name + ".test")
	if err != nil {
		t.Fatal(err)
	}
	tlsFile := filepath.Join(p.config, "tls.pem")
	p.write("etc/tls.pem", string(key)+string(cert), 0o600)
	main := map[string]string{
		"compatibility_level":          "3.6",
		"queue_directory":              p.queue,
		"data_directory":               data,
		"maillog_file":                 p.log,
		"maillog_file_prefixes":        base,
		"syslog_name":                  name,
		"myhostname":                   name + ".test",
		"mydestination":                "",
		"inet_interfaces":              address,
		"inet_protocols":               "ipv4",
		"mynetworks":                   "127.0.0.0/8",
		"alias_maps":                   "",
		"alias_database":               "",
		"biff":                         "no",
		"message_size_limit":           "62914560",
		"smtputf8_enable":              "yes",
		"smtpd_tls_security_level":     "may",
		"smtpd_tls_cert_file":          tlsFile,
		"smtpd_tls_key_file":           tlsFile,
		"smtp_tls_security_level":      "may",
		"local_header_rewrite_clients": "",
		"smtpd_peername_lookup":        "no",
		// A test does not wait for the usual back-off.
		"minimal_backoff_time": "5s",
		"maximal_backoff_time": "10s",
		"queue_run_delay":      "5s",
		"smtp_connect_timeout": "5s",
	}
	maps.Copy(main, settings)
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(main)) {
		fmt.Fprintf(&text, "%s = %s\n", key, main[key])
	}
	p.write("etc/main.cf", text.String(), 0o644)
	p.write("etc/master.cf", fmt.Sprintf("%s:25 inet n - n - - smtpd%s", address, services), 0o644)
	return p
}

// nobody owns what a Postfix that is a primary keeps.
const nobody = 65534

// keeping are the settings of a primary that keeps all mail for the domains in one
// maildir, Maildir in a directory of nobody's.
func keeping(dir, domains string) map[string]string {
	return map[string]string{
		"mynetworks":               "",
		"smtpd_relay_restrictions": "reject_unauth_destination",
		"virtual_mailbox_domains":  domains,
		"virtual_mailbox_base":     dir,
		"virtual_mailbox_maps":     "static:Maildir/",
		"virtual_mailbox_limit":    "0",
		"virtual_minimum_uid":      "1",
		"virtual_uid_maps":         fmt.Sprintf("static:%d", nobody),
		"virtual_gid_maps":         fmt.Sprintf("static:%d", nobody),
	}
}

func (p *postfix) write(name, text string, mode fs.FileMode) {
	p.t.Helper()
	if err := os.WriteFile(filepath.Join(filepath.Dir(p.config), name), []byte(text), mode); err != nil {
		p.t.Fatal(err)
	}
}

func (p *postfix) run(verb string) {
	p.t.Helper()
	// Without a terminal it says nothing: what it has to say is in the log.
	out, err := exec.Command("postfix", "-c", p.config, verb).CombinedOutput()
	if err != nil {
		p.t.Fatalf("postfix %s of %s: %v\n%s\n%s", verb, p.name, err, out, p.tail())
	}
}

func (p *postfix) start() { p.t.Helper(); p.run("start") }
func (p *postfix) stop()  { p.t.Helper(); p.run("stop") }

// queued counts the messages in the instance's queue.
func (p *postfix) queued() (count int) {
	for _, name := range []string{"maildrop", "incoming", "active", "deferred", "hold"} {
		filepath.WalkDir(filepath.Join(p.queue, name), func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				count++
			}
			return nil // a file may go while we look
		})
	}
	return count
}

// lines returns the log.
func (p *postfix) lines() []string {
	data, err := os.ReadFile(p.log)
	if err != nil {
		return nil
	}
	return strings.Split(string(data), "\n")
}

func (p *postfix) tail() string {
	lines := p.lines()
	return strings.Join(lines[max(0, len(lines)-25):], "\n")
}
