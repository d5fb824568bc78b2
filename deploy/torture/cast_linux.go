package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/clustertest"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/fleet"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/letter"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
	"github.com/holdfast-mx/holdfast/deploy/cell"
	"github.com/holdfast-mx/holdfast/deploy/torture/fabric"
)

// The addresses of the cast. Those of senders and primaries are this process's.
var (
	addressSender  = netip.MustParseAddr("10.77.0.2")
	addressPrimary = netip.MustParseAddr("10.77.0.3")
	addressReports = netip.MustParseAddr("10.77.0.4") // the smarthost, for reports to senders
	addressNobody  = "10.77.0.53"                     // the resolver, which is none
)

const (
	primaryPort = 2525
	// diskBytes is the size of each node's file system. The image is sparse.
	diskBytes = 400 << 20
	// leaseTime and doubtTime are shorter than an operator's, or a run would
	// wait most of the time.
	leaseTime = 5 * time.Second
	doubtTime = 5 * time.Second
)

func primaryAddress() string { return netip.AddrPortFrom(addressPrimary, primaryPort).String() }

func addressNode(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 77, 0, byte(11 + i)}) }

func domains() []string { return []string{"example.test", "example.org"} }

// A cast is the nodes on their hosts and disks, and the primary.
type cast struct {
	diary  *diary
	fabric *fabric.Fabric
	fleet  *fleet.Fleet
	hosts  []*fabric.Host
	disks  []*clustertest.PowerDisk // nil: plain directories

	arrived *ledger.Ledger
	book    *ledger.Ledger // of both sides
	faults  *sink.Faults
	primary *sink.Server // nil while it is down
	peer    *peer        // nil: both sides are played here
	unread  int64
	strict  int64 // violations of SMTP that primaries saw

	bounce  map[string]string // of each domain
	reports *sink.Server      // the smarthost
}

// assemble makes everything in dir, and starts nothing.
func assemble(ctx context.Context, d *diary, dir, bin string, seed uint64, nodes int, arrived, book *ledger.Ledger) (*cast, error) {
	c := &cast{diary: d, fabric: fabric.New(seed), arrived: arrived, book: book, faults: sink.NewFaults(seed), bounce: policies(seed)}
	if err := cell.Lay("/etc/resolv.conf", "nameserver "+addressNobody+"\n"); err != nil {
		return nil, err
	}
	own, err := c.fabric.JoinHere(addressSender, addressPrimary, addressReports)
	if err != nil {
		return nil, err
	}
	c.hosts = append(c.hosts, own)
	var hosts []fleet.Host
	for i := range nodes {
		h, err := c.fabric.Join(addressNode(i))
		if err != nil {
			return nil, err
		}
		c.hosts = append(c.hosts, h)
		hosts = append(hosts, fleet.Host{
			Address: addressNode(i).String(), Arguments: []string{"nsenter", "--net=" + h.Path(), "--"},
		})
	}
	c.fleet, err = fleet.New(ctx, fleet.Options{
		Bin: bin, Dir: dir, Cluster: "torture", Nodes: nodes, Hosts: hosts,
		Settings: map[string]string{
			"lease_duration":        fmt.Sprintf("%q", leaseTime),
			"doubt_wait":            fmt.Sprintf("%q", doubtTime),
			"commit_patience":       fmt.Sprintf("%q", patience),
			"smarthost":             fmt.Sprintf("%q", netip.AddrPortFrom(addressReports, primaryPort)),
			"disk_free_min_percent": "5",
			"max_message_size":      `"24MiB"`,
		},
	})
	if err != nil {
		return nil, err
	}
	return c, c.furnish(dir)
}

// furnish gives each node its disk.
func (c *cast) furnish(dir string) error {
	for _, n := range c.fleet.Nodes {
		where := filepath.Join(dir, "disk-of-"+n.Name)
		if err := os.Mkdir(where, 0o700); err != nil {
			return err
		}
		disk, err := clustertest.NewPowerDisk(where, diskBytes)
		if errors.Is(err, clustertest.ErrNoPowerDisk) {
			c.diary.say("data directories lie on this machine's own disk: %v", err)
			c.disks = nil
			return nil
		}
		if err != nil {
			return err
		}
		if err := disk.Mount(); err != nil {
			return err
		}
		c.disks = append(c.disks, disk)
		data := filepath.Join(disk.Dir, "data")
		if err := errors.Join(os.Mkdir(data, 0o700), os.Symlink(data, filepath.Join(n.Dir, "data"))); err != nil {
			return err
		}
	}
	return nil
}

// primaryUp brings the primary up, which notes what arrives.
func (c *cast) primaryUp() error {
	if c.peer.primary() {
		return c.peer.up()
	}
	if c.primary != nil {
		return nil
	}
	l, err := net.Listen("tcp", netip.AddrPortFrom(addressPrimary, primaryPort).String())
	if err != nil {
		return fmt.Errorf("bring the primary up: %w", err)
	}
	c.primary = sink.Start(l, sink.Options{
		Hostname: "primary.test", Faults: c.faults,
		Arrival: func(a ledger.Arrival) error {
			c.diary.arrived()
			return errors.Join(c.arrived.Arrival(a), c.book.Arrival(a))
		},
		Unread: func(u ledger.Unread) { _ = c.arrived.Unread(u) }, // a ledger that cannot write says so at the next arrival
		Refuse: letter.IsRefusedAt, Refused: c.refused,
	})
	return nil
}

// primaryDown ends it with all its connections.
func (c *cast) primaryDown() {
	if c.primary == nil {
		return
	}
	c.primary.Close()
	s := c.primary.Stats()
	c.unread += s.Unread
	c.strict += s.Violations
	c.primary = nil
}

// open starts the nodes and registers the domains.
func (c *cast) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, openTime, fmt.Errorf("not within %v", openTime))
	defer cancel()
	if err := errors.Join(c.fleet.Start(), c.reportsUp()); err != nil {
		return err
	}
	if err := c.fleet.Ready(ctx); err != nil {
		return err
	}
	to := netip.AddrPortFrom(addressPrimary, primaryPort).String()
	for i, domain := range domains() {
		if _, err := c.fleet.Holdfast(ctx, c.fleet.Nodes[i], "domain", "put", domain, "--to", to, "--retry-min", "2s", "--retry-max", "5s", "--bounce", c.bounce[domain]); err != nil {
			return err
		}
	}
	for _, n := range c.fleet.Nodes {
		err := c.fleet.Until(ctx, n.Name+" to know the domains", func(ctx context.Context) error {
			s, err := c.fleet.Status(ctx, n)
			if err == nil && len(s.Domains) < len(domains()) {
				err = fmt.Errorf("it knows %d", len(s.Domains))
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

const (
	openTime = 90 * time.Second
	// patience is how long a node waits for a commit before it leaves a sender
	// without a reply.
	patience = 20 * time.Second
)

// close ends every process that was started. Mounts and namespaces end with this
// process, but the images of disks must not be in use when they are removed.
func (c *cast) close() error {
	var errs []error
	if c.fleet != nil {
		for _, n := range c.fleet.Nodes {
			if n.Running() {
				errs = append(errs, n.Kill())
			}
		}
	}
	c.primaryDown()
	errs = append(errs, c.peer.close())
	if c.reports != nil {
		c.reports.Close()
	}
	for _, d := range c.disks {
		errs = append(errs, d.Unmount())
	}
	return errors.Join(errs...)
}

// statuses asks all running nodes at once, since one may be stopped. Who does not
// answer in time is not in it.
func (c *cast) statuses(ctx context.Context) map[int]fleet.Status {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var mu sync.Mutex
	all := map[int]fleet.Status{}
	var asking sync.WaitGroup
	for i, n := range c.fleet.Nodes {
		if !n.Running() {
			continue
		}
		asking.Go(func() {
			if s, err := c.fleet.Status(ctx, n); err == nil {
				mu.Lock()
				defer mu.Unlock()
				all[i] = s
			}
		})
	}
	asking.Wait()
	return all
}

// leader is the node that leads, as far as anybody says so; -1 where nobody does.
func (c *cast) leader(ctx context.Context) int {
	for i, s := range c.statuses(ctx) {
		if s.IsLeader && s.Quorum {
			return i
		}
	}
	return -1
}

// member is what "holdfast members" says of a node.
type member struct {
	Name      string `json:"name"`
	ServerID  string `json:"server_id"`
	Voter     bool   `json:"voter"`
	Hydration *struct {
		Known   bool   `json:"known"`
		Missing uint64 `json:"missing"`
	} `json:"hydration"`
}

// hydrated returns nil when every node has a vote under the server id that it has
// now, and lacks no body.
func (c *cast) hydrated(ctx context.Context) error {
	at := c.leader(ctx)
	if at < 0 {
		return errors.New("nobody leads")
	}
	out, err := c.fleet.Holdfast(ctx, c.fleet.Nodes[at], "members", "-o", "json")
	if err != nil {
		return err
	}
	var reply struct {
		Members []member `json:"members"`
	}
	if err := json.Unmarshal(out, &reply); err != nil {
		return fmt.Errorf("members: %w", err)
	}
	votes := map[string]member{}
	for _, m := range reply.Members {
		if m.Voter {
			votes[m.Name] = m
		}
	}
	for _, n := range c.fleet.Nodes {
		s, err := c.fleet.Status(ctx, n)
		if err != nil {
			return err
		}
		m, ok := votes[n.Name]
		switch {
		case !ok || len(votes) != len(c.fleet.Nodes):
			return fmt.Errorf("%d voters, %s one of them: %v", len(votes), n.Name, ok)
		case m.ServerID != s.ServerID:
			return fmt.Errorf("%s is %s, and %s has its vote", n.Name, s.ServerID, m.ServerID)
		case m.Hydration != nil && (!m.Hydration.Known || m.Hydration.Missing > 0):
			return fmt.Errorf("%s lacks %d bodies (known: %v)", n.Name, m.Hydration.Missing, m.Hydration.Known)
		}
	}
	return nil
}

// await looks at a condition until it is nil or the time is over.
func (c *cast) await(ctx context.Context, limit time.Duration, condition func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %v", limit))
	defer cancel()
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		err := condition(ctx)
		if err == nil {
			return nil
		}
		// A look that the end of the time cut short says nothing of the condition.
		if last == nil || !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			last = err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		}
	}
}
