package gossip

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/holdfast-mx/holdfast/cluster/transport"
)

var testKey = []byte("0123456789abcdef0123456789abcdef")

// impatient finds failures and looks for others within tenths of a second.
func impatient() timing {
	return timing{join: 100 * time.Millisecond, joinAlone: 50 * time.Millisecond, tune: func(m *memberlist.Config) {
		m.ProbeInterval, m.ProbeTimeout = 100*time.Millisecond, 50*time.Millisecond
		m.SuspicionMult, m.SuspicionMaxTimeoutMult = 1, 1
		m.GossipInterval, m.GossipToTheDeadTime = 20*time.Millisecond, 200*time.Millisecond
		m.DeadNodeReclaimTime = 100 * time.Millisecond
		m.TCPTimeout = 2 * time.Second
	}}
}

func config(name string, join ...string) Config {
	return Config{
		Cluster: "demo", Name: name, Listen: "127.0.0.1:0", Key: testKey, Join: join,
		Meta: Meta{Incarnation: "i-" + name, ClusterAddr: name + ".example:7420", CommandVersion: 1, Hostname: name + ".example", SMTP: []string{"127.0.0.1:25"}},
	}
}

func open(t *testing.T, c Config) *Gossip {
	t.Helper()
	g, err := start(c, impatient())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

// eventually waits for a condition, at most for ten seconds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for !cond() {
		if time.Now().After(deadline) {
			t.Fatalf("not within ten seconds: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// sees tells whether g lists exactly these as alive, itself included.
func sees(g *Gossip, names ...string) bool {
	var alive []string
	for _, m := range g.Members() {
		if m.Status == Alive {
			alive = append(alive, m.Name)
		}
	}
	return slices.Equal(alive, names)
}

func member(g *Gossip, name string) Member {
	for _, m := range g.Members() {
		if m.Name == name {
			return m
		}
	}
	return Member{}
}

func TestThreeSeeOneAnother(t *testing.T) {
	a := open(t, config("a"))
	b := open(t, config("b", a.Self().GossipAddr))
	// A name among the addresses to join, looked up by our own resolver.
	conf := config("c", "seed.example:"+port(t, a))
	conf.Resolve = func(_ context.Context, host string) ([]netip.Addr, error) {
		if host != "seed.example" {
			return nil, errors.New("no such host")
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}
	c := open(t, conf)
	all := []*Gossip{a, b, c}
	eventually(t, "all see all", func() bool {
		return sees(a, "a", "b", "c") && sees(b, "a", "b", "c") && sees(c, "a", "b", "c")
	})
	for _, g := range all {
		for _, name := range []string{"a", "b", "c"} {
			m := member(g, name)
			want := config(name).Meta
			if m.ServerID() != transport.ServerID(name+"/i-"+name) || m.ClusterAddr != want.ClusterAddr || m.CommandVersion != 1 ||
				m.Hostname != want.Hostname || !slices.Equal(m.SMTP, want.SMTP) || m.HasState {
				t.Errorf("%s knows %+v", g.config.Name, m)
			}
			if addr, ok := g.Address(name); !ok || addr != want.ClusterAddr {
				t.Errorf("address of %s: %q, %v", name, addr, ok)
			}
		}
	}
	if _, ok := a.Address("d"); ok {
		t.Error("a stranger has an address")
	}

	for len(c.Changed()) > 0 {
		<-c.Changed()
	}
	if err := a.Announce(true, "digest"); err != nil {
		t.Fatal(err)
	}
	if m := a.Self(); !m.HasState || m.Sees != "digest" {
		t.Errorf("a itself: %+v", m)
	}
	<-c.Changed()
	eventually(t, "the change of a reaches b and c", func() bool {
		return member(b, "a").HasState && member(c, "a").HasState && member(c, "a").Sees == "digest"
	})

	if err := b.Leave(2 * time.Second); err != nil {
		t.Error(err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "b is listed as left", func() bool { return member(a, "b").Status == Left && member(c, "b").Status == Left })
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "c is listed as dead", func() bool { return member(a, "c").Status == Dead })
	if m := member(a, "c"); m.Hostname != "c.example" {
		t.Errorf("of the dead c is known %+v", m)
	}
}

func port(t *testing.T, g *Gossip) string {
	t.Helper()
	_, p, err := net.SplitHostPort(g.Self().GossipAddr)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestStrangersStayOut: another key, another cluster's name, no encryption.
func TestStrangersStayOut(t *testing.T) {
	var log syncBuffer
	conf := config("a")
	conf.Log = slog.New(slog.NewTextHandler(&log, nil))
	a := open(t, conf)
	b := open(t, config("b", a.Self().GossipAddr))

	wrongKey := config("x", a.Self().GossipAddr)
	wrongKey.Key = []byte("fedcba9876543210")
	x := open(t, wrongKey)
	wrongLabel := config("y", a.Self().GossipAddr)
	wrongLabel.Cluster = "other"
	y := open(t, wrongLabel)
	plain := memberlist.DefaultLANConfig()
	plain.Name, plain.BindAddr, plain.BindPort, plain.AdvertisePort = "z", "127.0.0.1", 0, 0
	plain.Label, plain.Logger = "demo", newLogger(slog.New(slog.DiscardHandler))
	z, err := memberlist.Create(plain)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = z.Shutdown() }()
	if n, err := z.Join([]string{a.Self().GossipAddr}); err == nil {
		t.Errorf("plain text joined %d", n)
	}
	garbage(t, a.Self().GossipAddr)

	eventually(t, "a and b see each other", func() bool { return sees(a, "a", "b") && sees(b, "a", "b") })
	// Twenty rounds of x and y, by what a has logged of them.
	eventually(t, "the strangers were refused", func() bool { return strings.Contains(log.String(), "gossip: ") })
	time.Sleep(300 * time.Millisecond) // A few more rounds; waiting can only make the test stricter.
	if !sees(a, "a", "b") || !sees(x, "x") || !sees(y, "y") || z.NumMembers() != 1 {
		t.Errorf("a sees %v, x sees %v, y sees %v", a.Members(), x.Members(), y.Members())
	}
	if n := strings.Count(log.String(), "level=WARN"); n > logLinesMax {
		t.Errorf("%d lines of warning, at most %d", n, logLinesMax)
	}
}

// garbage sends random octets, and 64 kB of them, by UDP and TCP.
func garbage(t *testing.T, addr string) {
	t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		for _, data := range [][]byte{{}, {0}, {244, 4, 'd', 'e', 'm', 'o'}, bytes.Repeat([]byte{0xa5}, 60_000)} {
			c, err := net.Dial(network, addr)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = c.Write(data)
			_ = c.Close()
		}
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestRejoin: memberlist forgets the dead. A node that comes back and knows
// nobody is found by those who remember it.
func TestRejoin(t *testing.T) {
	a := open(t, config("a"))
	b := open(t, config("b", a.Self().GossipAddr))
	eventually(t, "first contact", func() bool { return sees(a, "a", "b") && sees(b, "a", "b") })
	addr := b.Self().GossipAddr
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a takes b for dead", func() bool { return sees(a, "a") })
	// Past GossipToTheDeadTime memberlist has forgotten b. Should it be slow, the
	// test is no harder than it looks, and no less true.
	time.Sleep(500 * time.Millisecond)
	again := config("b")
	again.Listen = addr
	again.Meta.Incarnation = "second"
	b = open(t, again)
	eventually(t, "they find together again", func() bool {
		return sees(a, "a", "b") && sees(b, "a", "b") && member(a, "b").Incarnation == "second"
	})
}

func TestPeersAreRemembered(t *testing.T) {
	file := filepath.Join(t.TempDir(), "peers")
	a := open(t, config("a"))
	conf := config("b", a.Self().GossipAddr)
	conf.PeersFile = file
	b := open(t, conf)
	eventually(t, "first contact", func() bool { return sees(b, "a", "b") })
	eventually(t, "the peers file is written", func() bool { known, err := readPeers(file); return err == nil && len(known) == 1 })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != peersFileMode {
		t.Errorf("peers file: %v, %v", info, err)
	}

	alone := conf
	alone.Join = nil // Only the file says where a is.
	b = open(t, alone)
	if m := member(b, "a"); m.Hostname != "a.example" || m.ClusterAddr == "" {
		t.Errorf("before any contact b remembers %+v", m)
	}
	eventually(t, "b finds a by the file", func() bool { return sees(a, "a", "b") && sees(b, "a", "b") })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("garbage\na 127.0.0.1:1 !!!\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	open(t, alone) // A damaged file costs its peers, not the node.
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(entries) != 1 {
		t.Errorf("left beside the peers file: %v, %v", entries, err)
	}
}

func TestStartRefuses(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   error
	}{
		{"meta too long", func(c *Config) { c.Meta.SMTP = slices.Repeat([]string{"[2001:db8::1]:25"}, 40) }, ErrMeta},
		{"field too long", func(c *Config) { c.Meta.Hostname = strings.Repeat("h", 256) }, ErrMeta},
		{"malformed name", func(c *Config) { c.Name = "No Name" }, transport.ErrName},
		{"no incarnation", func(c *Config) { c.Meta.Incarnation = "" }, transport.ErrName},
		{"malformed cluster", func(c *Config) { c.Cluster = "" }, transport.ErrName},
		{"no key", func(c *Config) { c.Key = nil }, nil},
		{"short key", func(c *Config) { c.Key = c.Key[:15] }, nil},
		{"nothing that others can dial", func(c *Config) { c.Listen = "0.0.0.0:0" }, nil},
		{"nothing that others can dial", func(c *Config) { c.Listen = ":0" }, nil},
		{"listen on a name", func(c *Config) { c.Listen = "localhost:0" }, nil},
	} {
		c := config("a")
		tt.change(&c)
		g, err := Start(c)
		if err == nil {
			t.Errorf("%s: started", tt.name)
			_ = g.Close()
		} else if tt.want != nil && !errors.Is(err, tt.want) {
			t.Errorf("%s: %v, want %v", tt.name, err, tt.want)
		}
	}
	g := open(t, config("a"))
	if err := g.Announce(true, strings.Repeat("x", 300)); !errors.Is(err, ErrMeta) {
		t.Errorf("announce too much: %v, want ErrMeta", err)
	}
	if g.Self().HasState {
		t.Error("a refused change was made")
	}
}

// TestRosterIsBounded: a thousand members that somebody with the key makes up.
func TestRosterIsBounded(t *testing.T) {
	r, err := newRoster("self", config("self").Meta, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	meta, err := config("x").Meta.encode()
	if err != nil {
		t.Fatal(err)
	}
	node := func(name string) *memberlist.Node {
		return &memberlist.Node{Name: name, Addr: net.IPv4(127, 0, 0, 1), Port: 1, Meta: meta}
	}
	names := func(i int) string {
		return "n" + strings.Repeat("x", i%10) + string(rune('a'+i/10%26)) + string(rune('a'+i/260))
	}
	admitted := 0
	for i := range 1000 {
		n := node(names(i))
		if r.NotifyAlive(n) == nil {
			r.NotifyJoin(n)
			admitted++
		}
	}
	if admitted != membersMax || len(r.list()) != membersMax {
		t.Errorf("%d admitted, %d listed, want %d", admitted, len(r.list()), membersMax)
	}
	for i := range 1000 { // They die, and others come: the dead make room.
		n := node(names(i))
		r.NotifyLeave(n)
	}
	if r.NotifyAlive(node("newcomer")) != nil {
		t.Error("no room after all died")
	}
	r.NotifyJoin(node("newcomer"))
	if m, ok := r.get("newcomer"); !ok || m.Status != Alive || len(r.list()) > membersMax || len(r.seen) > membersMax {
		t.Errorf("newcomer %+v among %d, %d", m, len(r.list()), len(r.seen))
	}
	for _, bad := range []*memberlist.Node{node(""), node("UPPER"), node("a/b"), {Name: "n", Meta: []byte{9}}, {Name: "n"}, {Name: "n", Meta: meta[:9]}} {
		if r.NotifyAlive(bad) == nil {
			t.Errorf("%+v is let in", bad)
		}
	}
}

func TestConflictIsAnAlarm(t *testing.T) {
	var log syncBuffer
	conf := config("a")
	conf.Log = slog.New(slog.NewTextHandler(&log, nil))
	a := open(t, conf)
	open(t, config("b", a.Self().GossipAddr))
	eventually(t, "first contact", func() bool { return sees(a, "a", "b") })
	open(t, config("b", a.Self().GossipAddr)) // The same name at another port.
	eventually(t, "the alarm", func() bool { return strings.Contains(log.String(), "two nodes claim one name") })
}

func FuzzMeta(f *testing.F) {
	b, _ := config("a").Meta.encode()
	f.Add(b)
	f.Add([]byte{metaVersion, 1, 0x80})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := decodeMeta(data)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil {
			if len(data) <= MetaBytesMax {
				t.Fatalf("%+v decoded from %d bytes: %v", m, len(data), err)
			}
			return
		}
		if m2, err := decodeMeta(again); err != nil || m2.Hostname != m.Hostname || !slices.Equal(m2.SMTP, m.SMTP) || m2.Sees != m.Sees {
			t.Fatalf("%+v, then %+v, %v", m, m2, err)
		}
	})
}
