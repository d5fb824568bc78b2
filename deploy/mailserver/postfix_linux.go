package mailserver

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
	"syscall"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
)

// An Instance is one instance of Postfix with its own configuration and queue.
type Instance struct {
	name   string
	config string // directory
	queue  string // directory
	log    string // file
}

// services are those of an instance that keeps mail, too, and its own log.
const services = PostfixServices + `local     unix  -  n  n  -      -  local
virtual   unix  -  n  n  -      -  virtual
postlog   unix-dgram n - n -    1  postlogd
`

// NewInstance makes an instance of Postfix, with settings besides or instead of those
// that every instance has. It is not started.
func NewInstance(p Place, settings map[string]string) (*Instance, error) {
	if err := Postfix.Lacking(""); err != nil {
		return nil, err
	}
	base := p.base()
	s := &Instance{name: p.Name, config: filepath.Join(base, "etc"), queue: filepath.Join(base, "queue"), log: filepath.Join(base, "log")}
	data := filepath.Join(base, "data")
	for _, d := range []string{s.config, s.queue, data} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, err
		}
	}
	owner, err := user.Lookup("postfix")
	if err != nil {
		return nil, fmt.Errorf("the postfix package is not set up: %w", err)
	}
	uid, err := strconv.Atoi(owner.Uid)
	if err != nil {
		return nil, err
	}
	if err := os.Chown(data, uid, -1); err != nil {
		return nil, err
	}
	cert, key, err := fleet.SelfSigned(p.Name + ".test")
	if err != nil {
		return nil, err
	}
	pem := filepath.Join(s.config, "tls.pem")
	main := map[string]string{
		"compatibility_level":          "3.6",
		"queue_directory":              s.queue,
		"data_directory":               data,
		"maillog_file":                 s.log,
		"maillog_file_prefixes":        base,
		"syslog_name":                  p.Name,
		"myhostname":                   p.Name + ".test",
		"mydestination":                "",
		"inet_interfaces":              p.Address,
		"inet_protocols":               "ipv4",
		"mynetworks":                   "127.0.0.0/8",
		"alias_maps":                   "",
		"alias_database":               "",
		"biff":                         "no",
		"message_size_limit":           "62914560",
		"smtputf8_enable":              "yes",
		"smtpd_tls_security_level":     "may",
		"smtpd_tls_cert_file":          pem,
		"smtpd_tls_key_file":           pem,
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
	for _, f := range []struct {
		name, text string
		mode       fs.FileMode
	}{
		{"tls.pem", string(key) + string(cert), 0o600},
		{"main.cf", text.String(), 0o644},
		{"master.cf", fmt.Sprintf("%s:%d inet n - n - - smtpd%s", p.Address, p.Port, services), 0o644},
	} {
		if err := os.WriteFile(filepath.Join(s.config, f.name), []byte(f.text), f.mode); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// nobody owns what a Postfix that is a primary keeps.
const nobody = 65534

// Keeping are the settings of a primary that keeps all mail for the domains in the
// maildir. The directory that the maildir is in becomes nobody's.
func Keeping(domains []string, maildir string) (map[string]string, error) {
	return map[string]string{
		"mynetworks":               "",
		"smtpd_relay_restrictions": "reject_unauth_destination",
		"virtual_mailbox_domains":  strings.Join(domains, " "),
		"virtual_mailbox_base":     filepath.Dir(maildir),
		"virtual_mailbox_maps":     "static:" + filepath.Base(maildir) + "/",
		"virtual_mailbox_limit":    "0",
		"virtual_minimum_uid":      "1",
		"virtual_uid_maps":         fmt.Sprintf("static:%d", nobody),
		"virtual_gid_maps":         fmt.Sprintf("static:%d", nobody),
	}, os.Chown(filepath.Dir(maildir), nobody, nobody)
}

func postfixPrimary(p Place, domains []string, maildir string) (Server, error) {
	settings, err := Keeping(domains, maildir)
	if err != nil {
		return nil, err
	}
	return NewInstance(p, settings)
}

// postfixSender tries the hosts in an order of its own for each message.
func postfixSender(p Place, hosts []string, port int) (Server, error) {
	if err := nameHosts("/etc/hosts", hosts); err != nil {
		return nil, err
	}
	return NewInstance(p, map[string]string{
		"mynetworks":        "127.0.0.0/8 " + p.Address,
		"smtp_bind_address": p.Address,
		"relayhost":         fmt.Sprintf("[%s]:%d", hostsName, port),
		// From /etc/hosts: it shuffles the addresses of one name.
		"smtp_host_lookup":                "native",
		"smtp_connection_cache_on_demand": "no",
		"smtp_helo_timeout":               "8s",
		"smtp_mail_timeout":               "8s",
		"smtp_rcpt_timeout":               "8s",
		"smtp_data_init_timeout":          "8s",
		"smtp_data_done_timeout":          "30s",
	})
}

func (s *Instance) run(verb string) error {
	// Without a terminal it says nothing: what it has to say is in the log.
	out, err := exec.Command("postfix", "-c", s.config, verb).CombinedOutput()
	if err != nil {
		return fmt.Errorf("postfix %s of %s: %w\n%s\n%s", verb, s.name, err, out, Tail(s))
	}
	return nil
}

// Start starts it.
func (s *Instance) Start() error { return s.run("start") }

// Stop stops it.
func (s *Instance) Stop() error { return s.run("stop") }

// Signal sends a signal to all its processes, whose working directory is the queue.
func (s *Instance) Signal(what syscall.Signal) error { return signal("cwd", s.queue, what) }

// Log is the name of its log.
func (s *Instance) Log() string { return s.log }

// Queued counts the messages in the instance's queue.
func (s *Instance) Queued() (count int) {
	for _, name := range []string{"maildrop", "incoming", "active", "deferred", "hold"} {
		count += files(filepath.Join(s.queue, name), func(string) bool { return true })
	}
	return count
}

// files counts the regular files below dir whose name is wanted.
func files(dir string, wanted func(name string) bool) (count int) {
	filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && wanted(d.Name()) {
			count++
		}
		return nil // a file may go while we look
	})
	return count
}
