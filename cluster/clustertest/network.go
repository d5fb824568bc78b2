package clustertest

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"time"
)

const (
	// dialTimeout is how long a dial into a cut waits.
	dialTimeout = time.Second
	// blackHoleTime is how long a connection that met a cut stays open and
	// silent before both ends see it break.
	blackHoleTime = 3 * time.Second
	// ephemeralPort is the first port of connections that were dialled.
	ephemeralPort = 32768
	// backlogMax bounds the connections that wait to be accepted.
	backlogMax = 128
)

var (
	errReset   = errors.New("connection reset by peer")
	errRefused = errors.New("connection refused")
	errUnreach = errors.New("no answer")
)

// A Network carries byte streams between named hosts.
//
// A cut is per direction. A connection that writes into a cut loses that and
// all later bytes of the direction, also after Heal, and breaks after three
// seconds: that is what a network does whose state was lost.
type Network struct {
	mu       sync.Mutex
	seed     uint64
	random   *rand.Rand // of what belongs to no connection
	delayMin time.Duration
	delayMax time.Duration
	hosts    map[string]*Host
	byIP     map[netip.Addr]*Host
	cuts     map[link]bool
	fuses    map[link]int
	dials    map[link]int
	frozen   map[string]time.Time
	made     uint64 // ends of connections
}

type link struct{ from, to string }

// NewNetwork returns a network whose delays, each way, are drawn between the
// two by the seed.
func NewNetwork(seed uint64, delayMin, delayMax time.Duration) *Network {
	return &Network{
		seed:     seed,
		random:   rand.New(rand.NewPCG(seed, 0x6e6574)),
		dials:    make(map[link]int),
		delayMin: delayMin,
		delayMax: max(delayMin, delayMax),
		hosts:    make(map[string]*Host),
		byIP:     make(map[netip.Addr]*Host),
		cuts:     make(map[link]bool),
		fuses:    make(map[link]int),
		frozen:   make(map[string]time.Time),
	}
}

// A Host is one end of connections: a name, an address in 10.0.0.0/16, and
// what listens there.
type Host struct {
	network   *Network
	name      string
	ip        netip.Addr
	listeners map[int]*listener
	conns     map[*Conn]uint64 // when each was made, counted
	port      int              // the next ephemeral one
}

// Host returns the host of that name, made at first use.
func (n *Network) Host(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.hosts[name]; h != nil {
		return h
	}
	number := len(n.hosts) + 1
	h := &Host{
		network:   n,
		name:      name,
		ip:        netip.AddrFrom4([4]byte{10, 0, byte(number >> 8), byte(number)}),
		listeners: make(map[int]*listener),
		conns:     make(map[*Conn]uint64),
		port:      ephemeralPort,
	}
	n.hosts[name] = h
	n.byIP[h.ip] = h
	return h
}

// Name returns the host's name.
func (h *Host) Name() string { return h.name }

// IP returns the host's address.
func (h *Host) IP() netip.Addr { return h.ip }

// NameOf returns the name of the host that an address of a connection belongs
// to, "" for none.
func (n *Network) NameOf(a net.Addr) string {
	tcp, ok := a.(*net.TCPAddr)
	if !ok {
		return ""
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.byIP[tcp.AddrPort().Addr()]; h != nil {
		return h.name
	}
	return ""
}

// Cut loses everything between two hosts, in both directions.
func (n *Network) Cut(a, b string) {
	n.CutOneWay(a, b)
	n.CutOneWay(b, a)
}

// CutOneWay loses everything that from sends to to.
func (n *Network) CutOneWay(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cuts[link{from, to}] = true
}

// BreakAfter has each connection break that carries more than so many octets from one
// host to the other, at least one: those arrive, the rest does not, and both ends see a
// reset. One that has carried more already breaks when it is written to.
func (n *Network) BreakAfter(from, to string, octets int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fuses[link{from, to}] = octets
}

// Heal ends the cuts between two hosts, and what BreakAfter began.
func (n *Network) Heal(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, l := range []link{{a, b}, {b, a}} {
		delete(n.cuts, l)
		delete(n.fuses, l)
	}
}

// HealAll ends all cuts, and what BreakAfter began.
func (n *Network) HealAll() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cuts)
	clear(n.fuses)
}

// Freeze has a host hear nothing and be heard by nobody until then. Nothing is
// lost: what it says, and what is said to it, arrives behind that. A process that
// is stopped and goes on is like this to all others.
func (n *Network) Freeze(host string, until time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.frozen[host] = until
}

// Frozen returns until when a host is frozen, the past if it is not.
func (n *Network) Frozen(host string) time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.frozen[host]
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Partition cuts every link between hosts of different groups, and heals every
// link within one.
func (n *Network) Partition(groups ...[]string) {
	for i, group := range groups {
		for _, a := range group {
			for j, other := range groups {
				for _, b := range other {
					if i == j {
						n.Heal(a, b)
					} else {
						n.Cut(a, b)
					}
				}
			}
		}
	}
}

// Reachable reports whether a request from one host to another would be
// answered now.
func (n *Network) Reachable(a, b string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cuts[link{a, b}] && !n.cuts[link{b, a}]
}

// Kill closes all listeners and connections of a host, as the end of its
// processes does. Those that start later may listen again.
func (n *Network) Kill(host string) {
	h := n.Host(host)
	n.mu.Lock()
	listeners, conns := h.listeners, h.conns
	h.listeners, h.conns = make(map[int]*listener), make(map[*Conn]uint64)
	n.mu.Unlock()
	// In the same order each time.
	for _, port := range slices.Sorted(maps.Keys(listeners)) {
		_ = listeners[port].Close()
	}
	for _, c := range slices.SortedFunc(maps.Keys(conns), func(a, b *Conn) int { return cmp.Compare(conns[a], conns[b]) }) {
		c.breakWith(errReset)
	}
}

// Listen listens on a port.
func (h *Host) Listen(port int) (net.Listener, error) {
	n := h.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if h.listeners[port] != nil {
		return nil, fmt.Errorf("listen %s:%d: address in use", h.name, port)
	}
	l := &listener{host: h, port: port, backlog: make(chan *Conn, backlogMax), closed: make(chan struct{})}
	h.listeners[port] = l
	return l, nil
}

// Dial connects to "name:port", or to an address of a host in place of its
// name. A cut in either direction makes it wait and fail.
func (h *Host) Dial(ctx context.Context, address string) (net.Conn, error) {
	name, portText, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	n := h.network
	to := n.find(name)
	if to == nil {
		return nil, fmt.Errorf("dial %s: no such host", address)
	}
	if !n.Reachable(h.name, to.name) {
		return nil, fmt.Errorf("dial %s: %w", address, wait(ctx, dialTimeout, errUnreach))
	}
	random := n.randomOf(h.name, to.name)
	d := n.delay(random) + n.delay(random)
	if frozen := time.Until(later(n.Frozen(h.name), n.Frozen(to.name))); frozen > 0 {
		d += frozen
	}
	if d > 0 {
		if err := wait(ctx, d, nil); err != nil {
			return nil, fmt.Errorf("dial %s: %w", address, err)
		}
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("dial %s: %w", address, err)
	}
	n.mu.Lock()
	l := to.listeners[port]
	if l == nil {
		n.mu.Unlock()
		return nil, fmt.Errorf("dial %s: %w", address, errRefused)
	}
	here := net.TCPAddrFromAddrPort(netip.AddrPortFrom(h.ip, uint16(h.port)))
	there := net.TCPAddrFromAddrPort(netip.AddrPortFrom(to.ip, uint16(port)))
	h.port++
	if h.port > 65535 {
		h.port = ephemeralPort
	}
	local, remote := newConns(n, h, to, here, there, random)
	n.made += 2
	h.conns[local], to.conns[remote] = n.made-1, n.made
	n.mu.Unlock()
	select {
	case l.backlog <- remote:
		return local, nil
	default:
		local.breakWith(errReset)
		return nil, fmt.Errorf("dial %s: %w", address, errRefused)
	}
}

func (n *Network) find(name string) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	if ip, err := netip.ParseAddr(name); err == nil {
		return n.byIP[ip]
	}
	return n.hosts[name]
}

// randomOf returns the numbers of another connection from one host to another. Each
// connection has its own, so that which of two writes first at the same moment, which
// no seed decides, changes nothing for the others.
func (n *Network) randomOf(from, to string) *rand.Rand {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := link{from, to}
	n.dials[l]++
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %s %d", from, to, n.dials[l])
	return rand.New(rand.NewPCG(n.seed, h.Sum64()))
}

// requestDelay draws how long a request outside of connections is under way.
func (n *Network) requestDelay() time.Duration {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.delay(n.random)
}

// delay draws how long something is under way.
func (n *Network) delay(random *rand.Rand) time.Duration {
	if n.delayMax == n.delayMin {
		return n.delayMin
	}
	return n.delayMin + time.Duration(random.Int64N(int64(n.delayMax-n.delayMin)))
}

// fuse returns behind how many octets a connection breaks, 0 where it does not.
func (n *Network) fuse(from, to string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fuses[link{from, to}]
}

func (n *Network) isCut(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cuts[link{from, to}]
}

// wait sleeps and returns err, or what ended ctx.
func wait(ctx context.Context, d time.Duration, err error) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

type listener struct {
	host    *Host
	port    int
	backlog chan *Conn
	closed  chan struct{}
	once    sync.Once
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.backlog:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *listener) Addr() net.Addr {
	return net.TCPAddrFromAddrPort(netip.AddrPortFrom(l.host.ip, uint16(l.port)))
}

func (l *listener) Close() error {
	l.once.Do(func() {
		n := l.host.network
		n.mu.Lock()
		if l.host.listeners[l.port] == l {
			delete(l.host.listeners, l.port)
		}
		n.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.backlog:
				c.breakWith(errReset)
			default:
				return
			}
		}
	})
	return nil
}
