package mailserver

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A Server is one mail server. It is not safe for concurrent use.
type Server interface {
	Start() error
	// Stop ends it as an operator does. What does not end in time is killed, which
	// is an error.
	Stop() error
	// Signal sends a signal to all processes of the server. With SIGKILL it returns
	// when they are gone.
	Signal(syscall.Signal) error
	// Log is the name of the file that it logs to.
	Log() string
	// Queued counts the messages in its queue.
	Queued() int
}

// A Place is where a server is and listens.
type Place struct {
	Dir      string // below which it gets a directory of its name; every user can reach it
	Name     string
	Address  string // IP address
	Port     int
	Unpacked string // where .ci/mailservers unpacked packages
	// Resolver is the address of the name server that it asks.
	Resolver string
}

func (p Place) base() string { return filepath.Join(p.Dir, p.Name) }

// NewPrimary makes a server that takes all mail for the domains and keeps it in the
// maildir, which it makes; the directory that the maildir is in exists. It is not
// started.
func NewPrimary(m Make, p Place, domains []string, maildir string) (Server, error) {
	switch m {
	case Postfix:
		return postfixPrimary(p, domains, maildir)
	case Exim:
		return eximPrimary(p, domains, maildir)
	case OpenSMTPD:
		return opensmtpdPrimary(p, domains, maildir)
	}
	return nil, fmt.Errorf("no make %q", m)
}

// NewSender makes a server that takes mail for anybody from its own host and hands
// it on to any of the hosts, addresses with one and the same port. It is not started.
// OpenSMTPD is none: it waits for 400 seconds before it tries anything again, and no
// setting changes that.
func NewSender(m Make, p Place, hosts []string, port int) (Server, error) {
	switch m {
	case Postfix:
		return postfixSender(p, hosts, port)
	case Exim:
		return eximSender(p, hosts, port)
	}
	return nil, fmt.Errorf("%s is no sender here", m)
}

// Close takes down what a server that does not run needs mounted. What is still
// mounted when a mount namespace ends goes with it.
func Close(s Server) error {
	if c, ok := s.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

const tailLines = 25

// Tail returns the last lines of a server's log.
func Tail(s Server) string {
	lines := Lines(s)
	return strings.Join(lines[max(0, len(lines)-tailLines):], "\n")
}

// Lines returns the log of a server. The last line may be incomplete.
func Lines(s Server) []string {
	data, err := os.ReadFile(s.Log())
	if err != nil {
		return nil
	}
	return strings.Split(string(data), "\n")
}

// goneTime is how long killed processes may take to go.
const goneTime = 10 * time.Second

// signal sends a signal to all processes of which a link in /proc ("cwd", "root")
// leads to dir. It leaves this process alone.
func signal(link, dir string, s syscall.Signal) error {
	// Processes of a server make others: until there are none.
	for deadline := time.Now().Add(goneTime); ; {
		all, err := filepath.Glob("/proc/[0-9]*/" + link)
		if err != nil {
			return err
		}
		left := 0
		for _, name := range all {
			pid, err := strconv.Atoi(filepath.Base(filepath.Dir(name)))
			if where, _ := os.Readlink(name); err != nil || pid == os.Getpid() || where != dir {
				continue
			}
			left++
			if err := syscall.Kill(pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("signal %d: %w", pid, err)
			}
		}
		if left == 0 || s != syscall.SIGKILL {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%d processes in %s outlive SIGKILL", left, dir)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
