package mailserver

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// opensmtpdPrimary has no TLS: Debian 12's 6.8 offers it, and fails in each
// handshake, whatever the key.
func opensmtpdPrimary(p Place, domains []string, maildir string) (Server, error) {
	const keeper = 64002
	s, err := newTree(OpenSMTPD, p,
		"opensmtpd:x:64003:64003::/var/lib/opensmtpd/empty:/usr/sbin/nologin",
		"opensmtpq:x:64004:64004::/nonexistent:/usr/sbin/nologin",
		fmt.Sprintf("keeper:x:%d:%d::%s:/bin/sh", keeper, keeper, filepath.Dir(maildir)))
	if err != nil {
		return nil, err
	}
	var all, ours []string
	for _, d := range domains {
		all = append(all, fmt.Sprintf("%q = \"keeper\"", "@"+d))
		ours = append(ours, fmt.Sprintf("%q", d))
	}
	queue := s.path("/var/spool/smtpd/queue")
	// Each message is a directory, of the id that its files begin with.
	s.queued = func() int { return files(queue, func(name string) bool { return name == "message" }) }
	s.line = []string{"/usr/sbin/smtpd", "-d", "-f", "/etc/smtpd.conf"}
	return s, errors.Join(
		os.Chown(filepath.Dir(maildir), keeper, keeper),
		os.MkdirAll(s.path("/var/lib/opensmtpd/empty"), 0o755),
		os.MkdirAll(s.path("/var/spool/smtpd"), 0o711),
		s.write("/etc/smtpd.conf", fmt.Sprintf(`
smtp max-message-size "60M"
listen on %[1]s port %[2]d hostname %[3]s.test
table all { %[4]s }
table ours { %[5]s }
action "keep" maildir "%[6]s" virtual <all>
match from any for domain <ours> action "keep"
`, p.Address, p.Port, p.Name, strings.Join(all, ", "), strings.Join(ours, ", "), maildir), 0o600))
}
