package mailserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
)

// The user that Exim runs as. It never runs as root but to listen: it keeps the
// privilege of delivering as anybody only with a configuration file that its build
// trusts.
const (
	eximUser = "Debian-exim"
	eximUID  = 64001
)

// newExim makes an Exim whose access control, routers and transports are these. It
// is not a server yet where it cannot own what it writes to, owned.
func newExim(p Place, rules string, owned ...string) (*tree, error) {
	s, err := newTree(Exim, p, fmt.Sprintf("%s:x:%d:%d::%s:/usr/sbin/nologin", eximUser, eximUID, eximUID, p.Dir))
	if err != nil {
		return nil, err
	}
	spool := filepath.Join(s.dir, "spool")
	if err := os.Mkdir(spool, 0o750); err != nil {
		return nil, err
	}
	for _, d := range append(owned, spool) {
		if err := os.Chown(d, eximUID, eximUID); err != nil {
			return nil, err
		}
	}
	cert, key, err := fleet.SelfSigned(p.Name + ".test")
	if err != nil {
		return nil, err
	}
	s.queued = func() int {
		return files(filepath.Join(spool, "input"), func(name string) bool { return strings.HasSuffix(name, "-H") })
	}
	s.line = []string{"/usr/sbin/exim4", "-C", "/etc/exim.conf", "-bdf", "-q5s"}
	return s, errors.Join(
		s.write("/etc/tls.pem", string(key)+string(cert), 0o600),
		os.Chown(s.path("/etc/tls.pem"), eximUID, -1),
		s.write("/etc/exim.conf", fmt.Sprintf(`
primary_hostname = %[1]s.test
local_interfaces = %[2]s
daemon_smtp_ports = %[3]d
spool_directory = %[4]s
log_file_path = %[5]s/%%slog
pid_file_path = %[4]s/pid
tls_advertise_hosts = *
tls_certificate = /etc/tls.pem
deliver_drop_privilege
message_size_limit = 60M
smtp_accept_queue_per_connection = 0
smtp_accept_max = 100
host_lookup =
acl_smtp_rcpt = recipients
%[6]s`, p.Name, p.Address, p.Port, spool, s.logs(), rules), 0o644),
		os.Mkdir(s.logs(), 0o750), os.Chown(s.logs(), eximUID, eximUID))
}

// logs is the directory that Exim logs in.
func (s *tree) logs() string { return filepath.Join(s.dir, "logs") }

// An exim logs into a directory, as a user that cannot write the file that its
// output goes to.
type exim struct{ *tree }

// Log is the name of the main log.
func (s exim) Log() string { return filepath.Join(s.logs(), "mainlog") }

func eximPrimary(p Place, domains []string, maildir string) (Server, error) {
	s, err := newExim(p, fmt.Sprintf(`
begin acl
recipients:
  accept domains = %[1]s
  deny

begin routers
ours:
  driver = accept
  domains = %[1]s
  transport = keep

begin transports
keep:
  driver = appendfile
  maildir_format
  directory = %[2]s
  user = %[3]s
  envelope_to_add
  return_path_add
`, strings.Join(domains, " : "), maildir, eximUser), filepath.Dir(maildir))
	return exim{s}, err
}

func eximSender(p Place, hosts []string, port int) (Server, error) {
	s, err := newExim(p, fmt.Sprintf(`
queue_run_max = 2
retry_interval_max = 10s

begin acl
recipients:
  accept hosts = %[1]s
  deny

begin routers
away:
  driver = manualroute
  domains = *
  route_list = * %[2]s
  hosts_randomize
  caseful_local_part
  transport = away

begin transports
away:
  driver = smtp
  port = %[3]d
  interface = %[1]s
  allow_localhost
  connect_timeout = 5s
  command_timeout = 8s
  final_timeout = 30s
  connection_max_messages = 10

begin retry
* * F,1d,5s
`, p.Address, strings.Join(hosts, ":"), port))
	return exim{s}, err
}
