package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/holdfast-mx/holdfast/cluster/transport"
)

const (
	// joinEvery is how often addresses without a living member are tried, and
	// joinEveryAlone while nobody else is alive.
	joinEvery      = 30 * time.Second
	joinEveryAlone = 2 * time.Second

	// resolveMax bounds the look-up of one host name.
	resolveMax = 5 * time.Second

	// joinAddressesMax bounds the addresses tried in one round.
	joinAddressesMax = 128

	// reclaimAfter is how long a member must be dead before its name may appear
	// at another address. Without it a node that moved stays unknown while it
	// is remembered as dead.
	reclaimAfter = 10 * time.Second

	// updateMax bounds the wait until a change of our Meta has been sent to
	// somebody. It spreads later in any case.
	updateMax = time.Second

	// rememberPause collects changes into one write of the peers file.
	rememberPause = 200 * time.Millisecond
)

// Config sets a Gossip up.
type Config struct {
	Cluster string // its name is the label of every packet
	Name    string // this node's, as in its certificate
	Meta    Meta
	Listen  string // IP:port for TCP and UDP; no IP is every address
	// Advertise is the host:port where the others reach Listen; empty where
	// Listen has the address already. It may be a name, which is resolved once.
	Advertise string
	Key       []byte   // 16, 24 or 32 bytes: AES-128, 192, 256
	WAN       bool     // longer timeouts
	Join      []string // host:port of other nodes; names are resolved each time
	PeersFile string   // remembers members across restarts; empty for nowhere
	// Resolve looks host names up; nil is the system's resolver.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	Log     *slog.Logger
}

// A Gossip takes part until Close. It is safe for concurrent use.
type Gossip struct {
	config    Config
	roster    *roster
	list      *memberlist.Memberlist
	advertise netip.AddrPort
	updated   chan struct{} // capacity 1: our Meta has changed
	timing    timing

	ctx    context.Context
	cancel context.CancelFunc
	loops  sync.WaitGroup

	closing  sync.Mutex // held by Leave and Close, which must not overlap
	left     atomic.Bool
	closed   bool
	closeErr error
}

// A timing is how fast a Gossip goes about things; tests are more impatient.
type timing struct {
	join, joinAlone time.Duration
	tune            func(*memberlist.Config)
}

// Start listens, and begins to look for the others. It does not wait for them.
func Start(c Config) (*Gossip, error) {
	return start(c, timing{join: joinEvery, joinAlone: joinEveryAlone, tune: func(*memberlist.Config) {}})
}

func start(c Config, how timing) (_ *Gossip, err error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Resolve == nil {
		c.Resolve = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	if err := transport.CheckName(c.Cluster); err != nil {
		return nil, fmt.Errorf("cluster: %w", err)
	}
	if err := (Member{Name: c.Name, Meta: c.Meta}).ServerID().Check(); err != nil {
		return nil, err
	}
	if err := memberlist.ValidateKey(c.Key); err != nil {
		return nil, fmt.Errorf("gossip key of %d bytes, want 16, 24 or 32", len(c.Key))
	}
	r, err := newRoster(c.Name, c.Meta, c.Log)
	if err != nil {
		return nil, err
	}
	g := &Gossip{config: c, roster: r, updated: make(chan struct{}, 1), timing: how}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	defer func() {
		if err != nil {
			g.cancel()
		}
	}()
	if c.PeersFile != "" {
		known, err := readPeers(c.PeersFile)
		if err != nil {
			c.Log.Warn("peers file not read in full", "cause", err)
		}
		for _, m := range known[:min(len(known), membersMax)] {
			if m.Name != c.Name {
				r.put(m)
			}
		}
	}
	if err := g.open(); err != nil {
		return nil, err
	}
	g.loops.Go(g.joinLoop)
	g.loops.Go(g.updateLoop)
	if c.PeersFile != "" {
		g.loops.Go(g.rememberLoop)
	}
	return g, nil
}

// open starts memberlist.
func (g *Gossip) open() error {
	c := g.config
	host, port, err := splitListen(c.Listen)
	if err != nil {
		return fmt.Errorf("gossip address %q: %w", c.Listen, err)
	}
	logger := newLogger(c.Log)
	n, err := listen(g.ctx, host, port, logger)
	if err != nil {
		return err
	}
	if g.advertise, err = g.resolveAdvertise(host, n.GetAutoBindPort()); err != nil {
		return errors.Join(err, n.Shutdown())
	}
	m := memberlist.DefaultLANConfig()
	if c.WAN {
		m = memberlist.DefaultWANConfig()
	}
	m.Name = c.Name
	m.Label = c.Cluster
	m.SecretKey = slices.Clone(c.Key)
	m.GossipVerifyIncoming, m.GossipVerifyOutgoing = true, true
	m.EnableCompression = false // There is nothing to compress.
	m.Transport = n
	m.BindAddr, m.BindPort = host, n.GetAutoBindPort()
	m.AdvertiseAddr, m.AdvertisePort = g.advertise.Addr().String(), int(g.advertise.Port())
	m.DeadNodeReclaimTime = reclaimAfter
	m.Delegate, m.Events, m.Alive, m.Conflict = g.roster, g.roster, g.roster, g.roster
	m.Logger = logger
	g.timing.tune(m)
	if g.list, err = memberlist.Create(m); err != nil {
		return errors.Join(fmt.Errorf("start gossip: %w", err), n.Shutdown())
	}
	return nil
}

func splitListen(address string) (host string, port int, err error) {
	host, sport, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	if _, err := netip.ParseAddr(host); err != nil && host != "" {
		return "", 0, errors.New("want an IP address, or none for all")
	}
	n, err := strconv.ParseUint(sport, 10, 16)
	return host, int(n), err
}

// resolveAdvertise returns the address that the others are told. It refuses to
// guess one: which of a host's addresses the others reach, only the
// administrator knows.
func (g *Gossip) resolveAdvertise(listenHost string, listenPort int) (netip.AddrPort, error) {
	address := g.config.Advertise
	if address == "" {
		if listenHost == "" {
			listenHost = netip.IPv6Unspecified().String()
		}
		address = net.JoinHostPort(listenHost, strconv.Itoa(listenPort))
	}
	found, err := g.resolve(address)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("advertised gossip address: %w", err)
	}
	a := found[0]
	if a.Addr().IsUnspecified() {
		return netip.AddrPort{}, fmt.Errorf("advertised gossip address %s is not one that others can dial", a)
	}
	if a.Port() == 0 { // Listen's port 0 has been replaced by a real one.
		a = netip.AddrPortFrom(a.Addr(), uint16(listenPort))
	}
	return a, nil
}

// resolve returns the addresses of host:port, at least one.
func (g *Gossip) resolve(address string) ([]netip.AddrPort, error) {
	if a, err := netip.ParseAddrPort(address); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(a.Addr().Unmap(), a.Port())}, nil
	}
	host, sport, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := strconv.ParseUint(sport, 10, 16)
	if err != nil {
		return nil, fmt.Errorf("port of %q: %w", address, err)
	}
	ctx, cancel := context.WithTimeout(g.ctx, resolveMax)
	defer cancel()
	ips, err := g.config.Resolve(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("look up %q: %w", host, err)
	}
	if len(ips) == 0 {
		return nil, fmt.Errorf("look up %q: no address", host)
	}
	var found []netip.AddrPort
	for _, ip := range ips {
		found = append(found, netip.AddrPortFrom(ip.Unmap(), uint16(port)))
	}
	return found, nil
}

// Members lists everybody that gossip knows, ourselves included, sorted by
// name. Members that were seen once and are gone are listed as Dead or Left.
func (g *Gossip) Members() []Member {
	all := append(g.roster.list(), g.Self())
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Self returns ourselves as the others see us.
func (g *Gossip) Self() Member {
	g.roster.mu.Lock()
	defer g.roster.mu.Unlock()
	m := Member{Name: g.config.Name, Status: Alive, GossipAddr: g.advertise.String(), Meta: g.roster.meta}
	m.SMTP = slices.Clone(m.SMTP)
	return m
}

// Address returns where the named node's TLS port is, if it has ever been seen.
func (g *Gossip) Address(name string) (string, bool) {
	if name == g.config.Name {
		return g.Self().ClusterAddr, true
	}
	m, ok := g.roster.get(name)
	return m.ClusterAddr, ok && m.ClusterAddr != ""
}

// Changed returns a channel that carries a value when Members may differ from
// what was last returned. Changes are collected: there is one value at most,
// and one consumer gets it.
func (g *Gossip) Changed() <-chan struct{} { return g.roster.changed }

// Announce tells the others whether we have state, and whom we see. It returns
// at once; sees of more than 255 bytes is refused.
func (g *Gossip) Announce(hasState bool, sees string) error {
	return g.SetMeta(func(m *Meta) { m.HasState, m.Sees = hasState, sees })
}

// SetMeta changes what we say of ourselves, and returns at once. ErrMeta: it
// does not fit, and the old one stands.
func (g *Gossip) SetMeta(change func(*Meta)) error {
	changed, err := g.roster.setMeta(change)
	if changed {
		poke(g.updated)
	}
	return err
}

// Leave says goodbye, so that the others list us as Left and not, after a while,
// as Dead. It waits up to timeout until somebody heard it. Close comes next.
func (g *Gossip) Leave(timeout time.Duration) error {
	g.closing.Lock()
	defer g.closing.Unlock()
	if g.closed {
		return nil
	}
	g.left.Store(true)
	if _, err := g.roster.setMeta(func(m *Meta) { m.leaving = true }); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	// Half of the time for each message; the others make do with one.
	if err := g.list.UpdateNode(timeout / 2); err != nil {
		g.config.Log.Debug("goodbye not yet gossiped", "cause", err)
	}
	if err := g.list.Leave(timeout / 2); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

// Close ends gossip without a word, and waits for its loops.
func (g *Gossip) Close() error {
	g.closing.Lock()
	defer g.closing.Unlock()
	if g.closed {
		return g.closeErr
	}
	g.closed = true
	g.cancel()
	if err := g.list.Shutdown(); err != nil {
		g.closeErr = fmt.Errorf("stop gossip: %w", err)
	}
	g.loops.Wait()
	return g.closeErr
}

// joinLoop tries the addresses behind which nobody is alive.
func (g *Gossip) joinLoop() {
	for {
		if addresses := g.missing(); len(addresses) > 0 && !g.left.Load() {
			// An error means that nobody was reached; there is another round.
			if _, err := g.list.Join(addresses); err != nil && g.ctx.Err() == nil {
				g.config.Log.Debug("nobody joined", "cause", err)
			}
		}
		wait := g.timing.joinAlone
		if g.roster.others() {
			wait = g.timing.join
		}
		select {
		case <-time.After(wait):
		case <-g.ctx.Done():
			return
		}
	}
}

// missing returns the configured and remembered addresses at which no living
// member is known, as IP:port: memberlist would look names up in its own way,
// which no Close ends.
func (g *Gossip) missing() []string {
	alive := map[string]bool{g.advertise.String(): true}
	var wanted []netip.AddrPort
	for _, m := range g.roster.list() {
		a, err := netip.ParseAddrPort(m.GossipAddr)
		if err != nil {
			continue
		}
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if m.Status == Alive {
			alive[a.String()] = true
		} else {
			wanted = append(wanted, a)
		}
	}
	for _, address := range g.config.Join {
		found, err := g.resolve(address)
		if err != nil {
			if g.ctx.Err() == nil {
				g.config.Log.Debug("address to join not resolved", "address", address, "cause", err)
			}
			continue
		}
		wanted = append(wanted, found...)
	}
	var missing []string
	for _, a := range wanted {
		if s := a.String(); !alive[s] && len(missing) < joinAddressesMax {
			alive[s] = true // Once is enough.
			missing = append(missing, s)
		}
	}
	return missing
}

// updateLoop spreads changes of our Meta.
func (g *Gossip) updateLoop() {
	for {
		select {
		case <-g.updated:
			if err := g.list.UpdateNode(updateMax); err != nil {
				g.config.Log.Debug("change not yet gossiped", "cause", err)
			}
		case <-g.ctx.Done():
			return
		}
	}
}

// rememberLoop keeps the peers file.
func (g *Gossip) rememberLoop() {
	var last []Member
	for {
		select {
		case <-g.roster.remember:
		case <-g.ctx.Done():
			return
		}
		select {
		case <-time.After(rememberPause):
		case <-g.ctx.Done():
		}
		members := g.roster.list()
		for i := range members {
			members[i].Status = Dead // As it will be read.
			members[i].leaving = false
			members[i].Sees = "" // It changes all the time, and is worth nothing later.
		}
		if slices.EqualFunc(members, last, equal) {
			continue
		}
		if err := writePeers(g.config.PeersFile, members); err != nil {
			g.config.Log.Warn("peers not remembered", "cause", err)
			continue
		}
		last = members
	}
}

func equal(a, b Member) bool {
	x, _ := a.encode() // Both were decoded from as many bytes.
	y, _ := b.encode()
	return a.Name == b.Name && a.GossipAddr == b.GossipAddr && string(x) == string(y)
}
