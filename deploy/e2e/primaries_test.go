//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
)

// A mailServer is a primary of some make, which keeps what it takes in a maildir.
type mailServer interface {
	start()
	stop()
	tail() string // of its log
}

// makes are the mail servers that mail is delivered to. Each has a domain of its
// name, and an address of its own.
var makes = []struct {
	name, address string
	// server makes one that listens at the address, takes all mail for the domain,
	// and keeps it in the maildir.
	server func(t *testing.T, dir, name, address, maildir string) mailServer
}{
	// Not addressPrimary: a process of a Postfix that was stopped may listen for a
	// while yet, and takes nothing.
	{"postfix", addressSigned, newPostfixPrimary},
	{"exim", "127.0.0.21", newEximPrimary},
	{"opensmtpd", "127.0.0.22", newOpenSMTPDPrimary},
}

func newPostfixPrimary(t *testing.T, dir, name, address, maildir string) mailServer {
	if err := os.Chown(filepath.Dir(maildir), nobody, nobody); err != nil {
		t.Fatal(err)
	}
	return newPostfix(t, dir, name, address, keeping(filepath.Dir(maildir), name+".test"))
}

// newEximPrimary never runs as root but to listen: it keeps the privilege of
// delivering as anybody only with a configuration file that its build trusts.
func newEximPrimary(t *testing.T, dir, name, address, maildir string) mailServer {
	const user, uid = "Debian-exim", 64001
	s := newTree(t, dir, name, "exim4-daemon-light", fmt.Sprintf("%s:x:%d:%d::%s:/usr/sbin/nologin", user, uid, uid, dir))
	spool := filepath.Join(s.dir, "spool")
	s.must(os.Mkdir(spool, 0o750))
	for _, d := range []string{spool, filepath.Dir(maildir)} {
		s.must(os.Chown(d, uid, uid))
	}
	cert, key, err := fleet.SelfSigned(name + ".test")
	s.must(err)
	s.write("/etc/tls.pem", string(key)+string(cert), 0o600)
	s.must(os.Chown(s.path("/etc/tls.pem"), uid, -1))
	s.write("/etc/exim.conf", fmt.Sprintf(`
primary_hostname = %[1]s.test
local_interfaces = %[2]s
daemon_smtp_ports = 25
spool_directory = %[3]s
log_file_path = %[3]s/%%slog
pid_file_path = %[3]s/pid
tls_advertise_hosts = *
tls_certificate = /etc/tls.pem
deliver_drop_privilege
message_size_limit = 60M
smtp_accept_queue_per_connection = 0
host_lookup =
acl_smtp_rcpt = for_us

begin acl
for_us:
  accept domains = %[1]s.test
  deny

begin routers
ours:
  driver = accept
  domains = %[1]s.test
  transport = keep

begin transports
keep:
  driver = appendfile
  maildir_format
  directory = %[4]s
  user = %[5]s
  envelope_to_add
  return_path_add
`, name, address, spool, maildir, user), 0o644)
	s.line = []string{"/usr/sbin/exim4", "-C", "/etc/exim.conf", "-bdf", "-q5s"}
	return s
}

// newOpenSMTPDPrimary has no TLS: Debian 12's 6.8 offers it, and fails in each
// handshake, whatever the key.
func newOpenSMTPDPrimary(t *testing.T, dir, name, address, maildir string) mailServer {
	const keeper = 64002
	s := newTree(t, dir, name, "opensmtpd",
		"opensmtpd:x:64003:64003::/var/lib/opensmtpd/empty:/usr/sbin/nologin",
		"opensmtpq:x:64004:64004::/nonexistent:/usr/sbin/nologin",
		fmt.Sprintf("keeper:x:%d:%d::%s:/bin/sh", keeper, keeper, filepath.Dir(maildir)))
	s.must(os.Chown(filepath.Dir(maildir), keeper, keeper))
	s.must(os.MkdirAll(s.path("/var/lib/opensmtpd/empty"), 0o755))
	s.must(os.MkdirAll(s.path("/var/spool/smtpd"), 0o711))
	s.write("/etc/smtpd.conf", fmt.Sprintf(`
smtp max-message-size "60M"
listen on %[2]s port 25 hostname %[1]s.test
table all { "@%[1]s.test" = "keeper" }
action "keep" maildir "%[3]s" virtual <all>
match from any for domain "%[1]s.test" action "keep"
`, name, address, maildir), 0o600)
	s.line = []string{"/usr/sbin/smtpd", "-d", "-f", "/etc/smtpd.conf"}
	return s
}

// Signed mail that comes in while its primary is down is kept by the primary as it
// was signed, whoever made the primary: every octet, and a signature that verifies.
func TestPrimariesKeepWhatWasSigned(t *testing.T) {
	dir := newDirectory(t)
	serveDNS(t)
	nodes := startNodes(t, dir, false)
	within := func(limit time.Duration, t *testing.T, what string, condition func(context.Context) error) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		if err := nodes.Until(ctx, what, condition); err != nil {
			t.Error(err)
		}
	}
	ready, cancel := context.WithTimeout(t.Context(), readyTime)
	defer cancel()
	if err := nodes.Ready(ready); err != nil {
		t.Fatal(err)
	}
	holdfast := func(t *testing.T, args ...string) {
		t.Helper()
		if _, err := nodes.Holdfast(t.Context(), nodes.Nodes[0], args...); err != nil {
			t.Fatal(err)
		}
	}

	key, book := newDKIMKey(t), ledger.New()
	var all []*letter.Letter
	for _, m := range makes {
		holdfast(t, "domain", "put", m.name+".test", "--to", m.address+":25")
		all = append(all, signedLetters(t, key, m.name+".test")...)
	}
	for _, n := range nodes.Nodes {
		within(readyTime, t, n.Name+" to know the domains", func(ctx context.Context) error {
			s, err := nodes.Status(ctx, n)
			if err == nil && len(s.Domains) != len(makes) {
				err = fmt.Errorf("it knows %d", len(s.Domains))
			}
			return err
		})
	}
	s, err := sender.New(sender.Options{
		Targets: nodes.Addresses(), Letter: func(i int) *letter.Letter { return all[i] },
		Count: len(all), Sessions: 3, PerConnection: 4, Record: book, GiveUp: queueTime,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := s.Stats(); got.Letters != len(all) {
		t.Fatalf("%d of %d letters were taken: %+v", got.Letters, len(all), got)
	}

	for _, m := range makes {
		t.Run(m.name, func(t *testing.T) {
			home := filepath.Join(dir, m.name, "mailbox")
			if err := os.MkdirAll(home, 0o755); err != nil {
				t.Fatal(err)
			}
			box := &maildir{path: filepath.Join(home, "Maildir"), book: book, seen: make(map[string]bool)}
			server := m.server(t, dir, m.name, m.address, box.path)
			server.start()
			defer func() {
				server.stop()
				if t.Failed() {
					t.Logf("the log of %s:\n%s", m.name, server.tail())
				}
			}()
			within(readyTime, t, m.name+" to greet", func(ctx context.Context) error { return fleet.Greets(ctx, m.address+":25") })
			holdfast(t, "domain", "flush", m.name+".test")
			within(drainTime, t, m.name+" to have all of its mail", func(context.Context) error {
				box.read(t)
				if len(box.seen) < len(contents) {
					return fmt.Errorf("%d of %d messages", len(box.seen), len(contents))
				}
				return nil
			})
			for name := range box.seen {
				data, err := os.ReadFile(filepath.Join(box.path, "new", name))
				if err != nil {
					t.Fatal(err)
				}
				// A maildir has lines as files have them.
				message := bytes.ReplaceAll(data, []byte("\n"), []byte("\r\n"))
				if err := key.verify(message); err != nil {
					t.Errorf("%v: %.1000q", err, message)
				}
			}
		})
	}
	within(drainTime, t, "the queue to be empty", func(ctx context.Context) error {
		s, err := nodes.Status(ctx, nodes.Nodes[0])
		if err == nil && (!s.Queue.Idle() || s.Queue.Held > 0) {
			err = fmt.Errorf("%v", s.Queue)
		}
		return err
	})
	report := book.Check()
	t.Log(report)
	if !report.OK() || report.Accepted != len(all) || report.Delivered != len(all) || report.Duplicates > 0 {
		t.Errorf("%+v\n%s", report, strings.Join(report.Cases, "\n"))
	}
}
