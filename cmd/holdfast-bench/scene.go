package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sender"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// readyTime bounds how long nodes may take to become ready.
const readyTime = 60 * time.Second

// domains are the relay domains of every scene.
func domains() []string { return []string{"example.test", "example.org"} }

// sceneOptions describe a scene.
type sceneOptions struct {
	name     string
	under    string // the directory to make everything in; "": the usual one
	bin      string
	keep     bool
	settings map[string]string
	environ  []string // of the nodes, beside our own
	starttls bool     // on both sides of the cluster
	// arguments run the nodes under another program, see fleet.Options.
	arguments []string
	logger    *slog.Logger
}

// A scene is a cluster of three nodes on this host, a primary that is down at
// first, and the ledger of what passes between them.
type scene struct {
	a       *app
	o       sceneOptions
	dir     string
	fleet   *fleet.Fleet
	book    *ledger.Ledger
	primary string // address
	faults  *sink.Faults
	server  *sink.Server // nil while the primary is down
	stats   sender.Stats
	failed  bool
	judged  bool
}

// openScene starts the nodes, waits until they are ready, and registers the
// relay domains.
func (a *app) openScene(ctx context.Context, o sceneOptions) (*scene, error) {
	dir, err := os.MkdirTemp(o.under, "holdfast-"+o.name+"-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	s := &scene{a: a, o: o, dir: dir, faults: sink.NewFaults(1)}
	if err := s.open(ctx); err != nil {
		s.failed = true
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *scene) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, readyTime, fmt.Errorf("not within %v", readyTime))
	defer cancel()
	var err error
	if s.book, err = ledger.Create(filepath.Join(s.dir, "ledger.jsonl"), ledger.Options{}); err != nil {
		return err
	}
	if s.primary, err = fleet.FreeAddress(); err != nil {
		return err
	}
	s.fleet, err = fleet.New(ctx, fleet.Options{
		Bin: s.o.bin, Dir: s.dir, Cluster: s.o.name, Settings: s.o.settings, STARTTLS: s.o.starttls,
		Arguments: s.o.arguments, Environment: s.o.environ,
	})
	if err != nil {
		return err
	}
	s.a.say("a throw-away cluster CA and three nodes, in %s", s.dir)
	if err := s.fleet.Start(); err != nil {
		return err
	}
	if err := s.fleet.Ready(ctx); err != nil {
		return err
	}
	leader, _, err := s.fleet.Leader(ctx)
	if err != nil {
		return err
	}
	s.a.say("ready: %s leads; SMTP at %s", leader.Name, strings.Join(s.fleet.Addresses(), " "))
	for i, domain := range domains() {
		// Through different nodes: any one will do.
		if _, err := s.fleet.Holdfast(ctx, s.fleet.Nodes[i], "domain", "put", domain, "--to", s.primary); err != nil {
			return err
		}
	}
	if err := s.awaitDomains(ctx); err != nil {
		return err
	}
	s.a.say("%s registered; their primary is %s, and down", strings.Join(domains(), " and "), s.primary)
	return nil
}

// awaitDomains waits until every node knows the relay domains: until then it
// refuses mail for them, rightly and for good.
func (s *scene) awaitDomains(ctx context.Context) error {
	for _, n := range s.fleet.Nodes {
		err := s.fleet.Until(ctx, n.Name+" to know the domains", func(ctx context.Context) error {
			status, err := s.fleet.Status(ctx, n)
			if err != nil {
				return err
			}
			if len(status.Domains) < len(domains()) {
				return fmt.Errorf("it knows %d", len(status.Domains))
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// primaryUp brings the primary up, which notes what arrives.
func (s *scene) primaryUp() error {
	return s.servePrimary(sink.Options{Hostname: primaryName, Arrival: s.book.Arrival, Faults: s.faults, Inspect: inspect, Logger: s.o.logger})
}

const primaryName = "primary.test"

func (s *scene) servePrimary(o sink.Options) error {
	if s.o.starttls {
		var err error
		if o.TLS, err = serverTLS(primaryName); err != nil {
			return err
		}
	}
	l, err := net.Listen("tcp", s.primary)
	if err != nil {
		return fmt.Errorf("bring the primary up: %w", err)
	}
	s.server = sink.Start(l, o)
	return nil
}

// primaryDown takes the primary down again.
func (s *scene) primaryDown() {
	if s.server == nil {
		return
	}
	s.server.Close()
	s.server = nil
}

// progress is a line about where the mail is.
func (s *scene) progress(ctx context.Context) string {
	missing, accepted := s.book.Missing()
	line := fmt.Sprintf("accepted %4d, arrived %4d", accepted, accepted-missing)
	var down []string
	said := false
	for _, n := range s.fleet.Nodes {
		if !n.Running() {
			down = append(down, n.Name)
			continue
		}
		if said {
			continue
		}
		if status, err := s.fleet.Status(ctx, n); err == nil {
			said = true
			leader := status.Leader
			if leader == "" {
				leader = "nobody"
			}
			line += fmt.Sprintf("; %v; %s leads", status.Queue, leader)
		}
	}
	if len(down) > 0 {
		line += "; down: " + strings.Join(down, " ")
	}
	return line
}

// accepted waits until that many pairs got a 250.
func (s *scene) accepted(ctx context.Context, pairs int) error {
	return s.fleet.Until(ctx, fmt.Sprintf("%d accepted recipients", pairs), func(context.Context) error {
		if _, n := s.book.Missing(); n < pairs {
			return fmt.Errorf("%d accepted", n)
		}
		return nil
	})
}

// errLost ends the wait for mail that nobody has any more.
var errLost = errors.New("no node has it any more")

// lostAfter is how long every node must say that its queue is empty, with mail
// missing, until it is believed: a node that has just started knows less than
// it will.
const lostAfter = 10 * time.Second

// drained waits until everything accepted has arrived and the queue is empty.
func (s *scene) drained(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	emptySince := time.Time{}
	return s.fleet.Until(ctx, "the queue to drain", func(ctx context.Context) error {
		var left error
		for _, n := range s.fleet.Running() {
			status, err := s.fleet.Status(ctx, n)
			if err == nil && (!status.Queue.Idle() || status.Queue.Held > 0) {
				err = fmt.Errorf("%s: %v", n.Name, status.Queue)
			}
			left = errors.Join(left, err)
		}
		missing, accepted := s.book.Missing()
		switch {
		case left != nil:
			emptySince = time.Time{}
		case missing > 0 && emptySince.IsZero():
			emptySince = time.Now()
		case missing > 0 && time.Since(emptySince) > lostAfter:
			cancel(errLost)
		}
		if missing > 0 {
			return fmt.Errorf("%d of %d recipients have not arrived", missing, accepted)
		}
		return left
	})
}

// judge prints the figures and the ledger's last word.
func (s *scene) judge() error {
	s.judged = true
	report := s.book.Check()
	s.printFigures()
	s.a.printReport(report)
	err := faults(report)
	if v := s.server.Stats().Violations; v > 0 {
		err = errors.Join(err, fmt.Errorf("the primary saw %d violations of SMTP", v))
	}
	if s.stats.Refused+s.stats.GivenUp > 0 {
		err = errors.Join(err, fmt.Errorf("%d recipients refused for good, %d given up", s.stats.Refused, s.stats.GivenUp))
	}
	err = errors.Join(err, s.fleet.Fallen())
	s.failed = s.failed || err != nil
	return err
}

func (s *scene) printFigures() {
	fmt.Fprintf(s.a.out, "%.1f messages/s, %d without a reply, %d deferred; reply to the final dot: %v\n",
		s.stats.PerSecond(), s.stats.NoReply, s.stats.Deferred, s.stats.Dot)
	var at []string
	for _, n := range s.fleet.Nodes {
		at = append(at, fmt.Sprintf("%d at %s", s.stats.Accepted[n.SMTP], n.Name))
	}
	fmt.Fprintf(s.a.out, "accepted: %s\n", strings.Join(at, ", "))
	// What may be delivered once more: what the primary took and cannot know
	// that the node read its 250, and what a node took and the sender had no
	// reply for (RFC 1047).
	fmt.Fprintf(s.a.out, "250s of the primary that nobody may have read: %d recipients; dots of the sender without a reply: %d\n",
		s.server.Stats().Unread, s.stats.NoReply)
	for _, n := range s.fleet.Nodes {
		fmt.Fprintf(s.a.out, "%s: peak memory %.0f MiB, started %d times\n", n.Name, float64(n.PeakRSS())/(1<<20), n.Starts())
	}
}

// close ends everything. The directory is kept on request, and after a failure.
func (s *scene) close() error {
	var errs []error
	if s.fleet != nil {
		errs = append(errs, s.fleet.Stop())
	}
	s.primaryDown()
	if s.book != nil {
		errs = append(errs, s.book.Close())
	}
	err := errors.Join(errs...)
	if s.failed || err != nil {
		s.a.say("kept: ledger, configurations and logs in %s", s.dir)
		return err
	}
	if s.o.keep {
		return nil // its name was said at the start, and the ledger has the last word
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}
