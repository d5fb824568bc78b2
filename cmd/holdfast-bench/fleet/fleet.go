package fleet

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	// commandTime bounds one call of the holdfast command.
	commandTime = 20 * time.Second
	// stopPatience is how long a node may take to end after SIGTERM.
	stopPatience = 20 * time.Second
	// pollEvery is how often a condition of the cluster is looked at.
	pollEvery = 100 * time.Millisecond
)

// Options describe a fleet.
type Options struct {
	// Bin is the directory of holdfastd and holdfast.
	Bin string
	// Dir is where everything is made. It must exist and be short enough for
	// the path of a unix socket in it.
	Dir string
	// Cluster is the cluster's name.
	Cluster string
	// Nodes is the number of nodes.
	Nodes int
	// SMTP gives the nodes' SMTP addresses; without it they are chosen.
	SMTP []string
	// STARTTLS gives the nodes a certificate for SMTP, of nobody's authority.
	STARTTLS bool
	// Settings are further lines of every configuration: key and TOML value.
	Settings map[string]string
	// Arguments come before holdfastd's own, to run it under another program;
	// for example {"strace", "-f"}. The program must pass signals on.
	Arguments []string
	// Hosts gives each node a host of its own; without it all are on this one's
	// loopback interface.
	Hosts []Host
	// Environment is added to holdfastd's own: NAME=value.
	Environment []string
}

// A Host is where a node runs: its address, and the program that runs it there.
type Host struct {
	Address   string
	Arguments []string // before Options.Arguments
}

// HostPortSMTP is where a node that has a host of its own takes mail; the others are
// for other nodes.
const (
	HostPortSMTP    = 2525
	hostPortCluster = 7420
	hostPortGossip  = 7421
)

// hosts gives every node its address and ports.
func (o *Options) hosts() (hosts []Host, ports []int, err error) {
	if o.Hosts == nil {
		ports, err = freePorts(3 * o.Nodes)
		return slices.Repeat([]Host{{Address: "127.0.0.1"}}, o.Nodes), ports, err
	}
	if len(o.Hosts) != o.Nodes {
		return nil, nil, fmt.Errorf("%d hosts for %d nodes", len(o.Hosts), o.Nodes)
	}
	return o.Hosts, slices.Repeat([]int{HostPortSMTP, hostPortCluster, hostPortGossip}, o.Nodes), nil
}

// A Fleet is a number of nodes that form one cluster.
type Fleet struct {
	Nodes []*Node
	o     Options
}

// New makes the files of all nodes. It starts nothing.
func New(ctx context.Context, o Options) (*Fleet, error) {
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Cluster == "" {
		o.Cluster = "demo"
	}
	for _, path := range []*string{&o.Bin, &o.Dir} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, fmt.Errorf("directory of the fleet: %w", err)
		}
		*path = absolute
	}
	f := &Fleet{o: o}
	for _, name := range []string{"holdfastd", "holdfast"} {
		if _, err := os.Stat(filepath.Join(o.Bin, name)); err != nil {
			return nil, fmt.Errorf(`%w: run "make build", or say --bin DIR`, err)
		}
	}
	ca := filepath.Join(o.Dir, "ca")
	if _, err := f.command(ctx, "ca", "create", "--cluster", o.Cluster, "--out", ca); err != nil {
		return nil, err
	}
	hosts, ports, err := o.hosts()
	if err != nil {
		return nil, err
	}
	for i := range o.Nodes {
		host := hosts[i]
		n := &Node{
			Name: fmt.Sprintf("node-%d", i+1), bin: filepath.Join(o.Bin, "holdfastd"), environment: o.Environment,
			arguments: slices.Concat(host.Arguments, o.Arguments),
			Dir:       filepath.Join(o.Dir, fmt.Sprintf("node-%d", i+1)),
			SMTP:      fmt.Sprintf("%s:%d", host.Address, ports[3*i]),
			Cluster:   fmt.Sprintf("%s:%d", host.Address, ports[3*i+1]),
			Gossip:    fmt.Sprintf("%s:%d", host.Address, ports[3*i+2]),
		}
		if o.SMTP != nil {
			n.SMTP = o.SMTP[i]
		}
		n.Socket = filepath.Join(n.Dir, "admin.sock")
		n.Log = filepath.Join(n.Dir, "log")
		n.Config = filepath.Join(n.Dir, "holdfast.toml")
		f.Nodes = append(f.Nodes, n)
		if _, err := f.command(ctx, "ca", "issue", "--ca", ca, "--node", n.Name, "--address", host.Address, "--out", n.Dir); err != nil {
			return nil, err
		}
		if o.STARTTLS {
			if err := writeCertificate(n.Dir, hostname(n.Name)); err != nil {
				return nil, err
			}
		}
	}
	for _, n := range f.Nodes {
		if err := os.WriteFile(n.Config, []byte(f.config(n)), 0o644); err != nil {
			return nil, fmt.Errorf("write configuration: %w", err)
		}
	}
	return f, nil
}

// command runs the holdfast command and returns its standard output.
func (f *Fleet) command(ctx context.Context, args ...string) ([]byte, error) {
	return run(ctx, filepath.Join(f.o.Bin, "holdfast"), args...)
}

func run(ctx context.Context, name string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.WaitDelay = time.Second
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(complaint.String()))
	}
	return out, nil
}

// Holdfast runs the holdfast command against a node.
func (f *Fleet) Holdfast(ctx context.Context, n *Node, args ...string) ([]byte, error) {
	return f.command(ctx, append([]string{"--socket", n.Socket}, args...)...)
}

// Start starts all nodes that do not run.
func (f *Fleet) Start() error {
	for _, n := range f.Nodes {
		if n.Running() {
			continue
		}
		if err := n.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends all nodes with SIGTERM, and with SIGKILL those that do not end. Its
// error names what did not go well.
func (f *Fleet) Stop() error {
	errs := make([]error, len(f.Nodes))
	var stopping sync.WaitGroup
	for i, n := range f.Nodes {
		stopping.Go(func() { errs[i] = n.Stop() })
	}
	stopping.Wait()
	return errors.Join(errs...)
}

// Addresses returns the SMTP addresses of all nodes.
func (f *Fleet) Addresses() []string {
	var all []string
	for _, n := range f.Nodes {
		all = append(all, n.SMTP)
	}
	return all
}

// Fallen returns an error for each node that ended without being told to.
func (f *Fleet) Fallen() error {
	var errs []error
	for _, n := range f.Nodes {
		errs = append(errs, n.Fallen())
	}
	return errors.Join(errs...)
}

func hostname(node string) string { return node + ".holdfast.test" }
