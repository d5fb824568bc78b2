package rival

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-mx/holdfast/deploy/mailserver"
)

// Options describe a Postfix.
type Options struct {
	// Dir is where everything is made. It must exist.
	Dir string
	// Address is where it listens, 127.0.0.1 and a port.
	Address string
	// Domain is relayed to NextHop, whose recipients are all valid.
	Domain, NextHop string
	// Settings are further lines of main.cf.
	Settings map[string]string
	// Environment is added to that of its processes, and kept by them.
	Environment map[string]string
}

// A Postfix is one instance with Debian's defaults, but for what it takes to have
// a place of its own and to take the same messages as its rival.
type Postfix struct {
	o             Options
	config, queue string // directories
	syslog        *exec.Cmd
	running       bool
}

// messageBytesMax is above what any benchmark sends.
const messageBytesMax = 62914560

// New makes the files of an instance. It needs root, and the package.
func New(o Options) (*Postfix, error) {
	for _, need := range []string{"postfix", "rsyslogd"} {
		if _, err := exec.LookPath(need); err != nil {
			return nil, fmt.Errorf("%s is missing: apt-get install postfix rsyslog", need)
		}
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("Postfix has to be started by root")
	}
	p := &Postfix{o: o, config: filepath.Join(o.Dir, "etc"), queue: filepath.Join(o.Dir, "queue")}
	for _, d := range []string{p.config, p.queue, p.data()} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
	}
	owner, err := user.Lookup("postfix")
	if err != nil {
		return nil, fmt.Errorf("the postfix package is not set up: %w", err)
	}
	uid, _ := strconv.Atoi(owner.Uid)
	if err := os.Chown(p.data(), uid, -1); err != nil {
		return nil, fmt.Errorf("give Postfix its data directory: %w", err)
	}
	files, err := p.files()
	if err != nil {
		return nil, err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(p.config, name), []byte(content), 0o644); err != nil {
			return nil, fmt.Errorf("write %s: %w", name, err)
		}
	}
	return p, nil
}

// files are the contents of the instance's files, by name.
func (p *Postfix) files() (map[string]string, error) {
	host, port, err := net.SplitHostPort(p.o.Address)
	if err != nil {
		return nil, fmt.Errorf("address of Postfix: %w", err)
	}
	hop, hopPort, err := net.SplitHostPort(p.o.NextHop)
	if err != nil {
		return nil, fmt.Errorf("next hop of Postfix: %w", err)
	}
	main := map[string]string{
		"compatibility_level": "3.6",
		"queue_directory":     p.queue,
		"data_directory":      p.data(),
		"syslog_name":         "rival",
		"myhostname":          "rival.test",
		"mydestination":       "",
		"inet_interfaces":     host,
		"inet_protocols":      "ipv4",
		"mynetworks":          "127.0.0.0/8",
		"alias_maps":          "",
		"alias_database":      "",
		"relay_domains":       p.o.Domain,
		"relayhost":           fmt.Sprintf("[%s]:%s", hop, hopPort),
		"message_size_limit":  strconv.Itoa(messageBytesMax),
		"mailbox_size_limit":  "0",
	}
	if len(p.o.Environment) > 0 {
		kept := []string{environmentKept}
		for _, name := range slices.Sorted(maps.Keys(p.o.Environment)) {
			value := p.o.Environment[name]
			if value == "" || strings.ContainsAny(value, " \t\r\n,{}$") { // main.cf's own characters
				return nil, fmt.Errorf("environment of Postfix: %s=%q cannot be written to its configuration", name, value)
			}
			kept = append(kept, name+"="+value)
		}
		main["import_environment"] = strings.Join(kept, " ")
	}
	maps.Copy(main, p.o.Settings)
	var text strings.Builder
	for _, key := range slices.Sorted(maps.Keys(main)) {
		fmt.Fprintf(&text, "%s = %s\n", key, main[key])
	}
	return map[string]string{
		"main.cf":      text.String(),
		"master.cf":    fmt.Sprintf("%s:%s inet n - n - - smtpd%s", host, port, mailserver.PostfixServices),
		"rsyslog.conf": fmt.Sprintf("module(load=\"imuxsock\")\n*.* -%s\n", filepath.Join(p.o.Dir, "mail.log")),
	}, nil
}

// environmentKept is what Postfix keeps of its environment by default, but for a
// display.
const environmentKept = "MAIL_CONFIG MAIL_DEBUG MAIL_LOGTAG TZ LANG=C POSTLOG_SERVICE POSTLOG_HOSTNAME"

func (p *Postfix) data() string { return filepath.Join(p.o.Dir, "data") }

// logSocket is where syslog(3) writes to.
const logSocket = "/dev/log"

// startSyslog starts a syslog daemon where none listens: Postfix's logging is
// part of what it does by default.
func (p *Postfix) startSyslog(ctx context.Context) error {
	if c, err := net.Dial("unixgram", logSocket); err == nil {
		return c.Close()
	}
	p.syslog = exec.Command("rsyslogd", "-n", "-f", filepath.Join(p.config, "rsyslog.conf"), "-i", filepath.Join(p.o.Dir, "rsyslog.pid"))
	if err := p.syslog.Start(); err != nil {
		return fmt.Errorf("start rsyslogd: %w", err)
	}
	return until(ctx, "rsyslogd", func() error {
		c, err := net.Dial("unixgram", logSocket)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

const (
	startPatience = 20 * time.Second
	pollEvery     = 50 * time.Millisecond
)

func until(ctx context.Context, what string, ready func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	for {
		err := ready()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", what, err)
		case <-time.After(pollEvery):
		}
	}
}

// Start starts the instance with an empty queue and waits until it greets.
func (p *Postfix) Start(ctx context.Context) error {
	if p.syslog == nil {
		if err := p.startSyslog(ctx); err != nil {
			return err
		}
	}
	if err := p.run(ctx, "start"); err != nil {
		return err
	}
	p.running = true
	return until(ctx, "Postfix", func() error {
		c, err := net.DialTimeout("tcp", p.o.Address, time.Second)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// Stop ends the instance and empties its queue.
func (p *Postfix) Stop(ctx context.Context) error {
	if !p.running {
		return nil
	}
	p.running = false
	err := p.run(ctx, "stop")
	for _, name := range []string{"maildrop", "incoming", "active", "deferred", "defer", "hold", "corrupt", "bounce"} {
		err = errors.Join(err, empty(filepath.Join(p.queue, name)))
	}
	return err
}

// empty removes the files below a directory and leaves the directories.
func empty(dir string) error {
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			err = os.Remove(path)
		}
		return err
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Close ends what New and Start began.
func (p *Postfix) Close(ctx context.Context) error {
	err := p.Stop(ctx)
	if p.syslog != nil {
		err = errors.Join(err, p.syslog.Process.Signal(syscall.SIGTERM))
		_ = p.syslog.Wait() // It says how it was ended.
		p.syslog = nil
	}
	return err
}

func (p *Postfix) run(ctx context.Context, verb string) error {
	cmd := exec.CommandContext(ctx, "postfix", "-c", p.config, verb)
	cmd.Env = os.Environ()
	for name, value := range p.o.Environment {
		cmd.Env = append(cmd.Env, name+"="+value)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("postfix %s: %w: %s (see %s)", verb, err, strings.TrimSpace(string(out)), filepath.Join(p.o.Dir, "mail.log"))
	}
	return nil
}
