package admin

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// A fakeCluster is a cluster of one that commits at once, unless it is told to
// fail.
type fakeCluster struct {
	mu       sync.Mutex
	state    *fsm.State
	index    fsm.Index
	status   Status
	members  []Member
	fail     error // what Do answers instead
	proposed []fsm.Action
	scrub    Scrub
	copies   []Copy
	scrubs   []string
	changes  []MemberChange
	onView   func()
	version  uint32 // of the commands that every server understands
	bodies   map[mail.QueueID]io.ReadSeeker
}

func newFakeCluster() *fakeCluster {
	return &fakeCluster{state: fsm.New(), version: fsm.CommandVersion, status: Status{
		Cluster: "example", Node: "mx1", ServerID: "mx1/abc", Version: "test",
		Leader: "mx1", IsLeader: true, Term: 3, Voters: []fsm.NodeName{"mx3", "mx1", "mx2"},
		Quorum: true, LastContact: time.Now(), Hostname: "mx1.example.net",
		SMTPAddresses: []string{"0.0.0.0:2525"},
	}}
}

func (c *fakeCluster) View() *fsm.State {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.onView != nil {
		c.onView()
	}
	return c.state.Snapshot()
}

func (c *fakeCluster) Do(_ context.Context, a fsm.Action) (fsm.Result, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.proposed = append(c.proposed, a)
	if c.fail != nil {
		return fsm.Result{}, c.fail
	}
	return c.applyLocked("mx1", a), nil
}

func (c *fakeCluster) Understood(a fsm.Action) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return fsm.VersionOf(a) <= c.version
}

func (c *fakeCluster) CallerPins(pins []string) ([][32]byte, error) {
	var all [][32]byte
	for _, text := range pins {
		raw, err := hex.DecodeString(text)
		if err != nil || len(raw) != 32 {
			return nil, errors.New("no pin: " + text)
		}
		all = append(all, [32]byte(raw))
	}
	return all, nil
}

func (c *fakeCluster) CallerSecret(_, password string) (fsm.PasswordHash, error) {
	if len(password) < 8 {
		return "", errors.New("too short")
	}
	return "salted-and-hashed", nil
}

func (c *fakeCluster) TLSPolicy(mode string, pins []string, authorities string, names []string) (fsm.TLSPolicy, error) {
	if mode != "verify" || len(pins) != 1 {
		return fsm.TLSPolicy{}, errors.New("only verify by a pin")
	}
	return fsm.TLSPolicy{Mode: fsm.TLSVerify, Pins: [][32]byte{{pins[0][0]}}, Authorities: authorities, Names: names}, nil
}

func (c *fakeCluster) TLSReport() []TLSDay {
	day := time.Date(2026, 11, 29, 0, 0, 0, 0, time.UTC)
	return []TLSDay{
		{day, []TLSPolicyCount{{Domain: "other.test", Type: "no-policy-found", Succeeded: 3}}},
		{day.AddDate(0, 0, 1), []TLSPolicyCount{
			{Domain: "example.test", Type: "sts", Succeeded: 7, Failed: 2, Failures: []TLSFailureCount{{"certificate-expired", "mail.example.test", 2}}},
			{Domain: "other.test", Type: "no-policy-found", Succeeded: 1},
		}},
	}
}

func (c *fakeCluster) OpenBody(_ context.Context, ref mail.BodyRef) (io.ReadSeekCloser, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	body, ok := c.bodies[ref.ID]
	if !ok {
		return nil, errors.New("held nowhere")
	}
	return struct {
		io.ReadSeeker
		io.Closer
	}{body, io.NopCloser(nil)}, nil
}

func (c *fakeCluster) applyLocked(node fsm.NodeName, a fsm.Action) fsm.Result {
	c.index++
	r, _ := c.state.Apply(c.index, fsm.Command{Node: node, Action: a})
	return r
}

// apply has an action committed that nobody asked the service for.
func (c *fakeCluster) apply(t *testing.T, node fsm.NodeName, a fsm.Action) fsm.Result {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.applyLocked(node, a)
	if r.Verdict != fsm.Done {
		t.Fatalf("%T: verdict %d, %s", a, r.Verdict, r.Text)
	}
	return r
}

func (c *fakeCluster) proposals() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.proposed)
}

func (c *fakeCluster) Status(context.Context) Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

func (c *fakeCluster) Members() []Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members
}

func (c *fakeCluster) Scrub(_ context.Context, node fsm.NodeName, a ScrubAction) (Scrub, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch node {
	case "mx8":
		return Scrub{}, fmt.Errorf("%w: connection refused", ErrUnreachable)
	case "mx9":
		return Scrub{}, ErrNoSuchNode
	}
	c.scrubs = append(c.scrubs, fmt.Sprintf("%d on %s", a, node))
	return c.scrub, nil
}

func (c *fakeCluster) Compare(context.Context) []Copy { return c.copies }

func (c *fakeCluster) ChangeMember(_ context.Context, m MemberChange) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch m.Name {
	case "mx8":
		return "", ErrNotAccepted
	case "mx9":
		return "it is no good", nil
	}
	c.changes = append(c.changes, m)
	return "", nil
}

// domain adds a relay domain.
func (c *fakeCluster) domain(t *testing.T, name mail.Domain) {
	t.Helper()
	c.apply(t, "mx1", fsm.PutDomain{Domain: fsm.Domain{Name: name, Targets: []fsm.Target{{Host: "192.0.2.10", Port: 25}}}})
}

// id returns the n-th id.
func id(n byte) mail.QueueID { return mail.MintQueueID(1_780_000_000_000+uint64(n), [10]byte{9: n}) }

// accept adds the n-th message to some recipients.
func (c *fakeCluster) accept(t *testing.T, n byte, to ...string) mail.QueueID {
	t.Helper()
	from, err := mail.ParseReversePath("sender@example.com", false)
	if err != nil {
		t.Fatal(err)
	}
	e := mail.Envelope{From: from, Return: mail.ReturnHeaders, EnvelopeID: "e1", EightBit: true, Trace: mail.Trace{
		Hello: "client.example", Client: netip.MustParseAddr("198.51.100.7"), Node: "mx1.example.net", Protocol: "ESMTPS",
		TLS: "TLS1.3 TLS_AES_128_GCM_SHA256", Received: 1_780_000_000,
	}}
	for _, s := range to {
		p, err := mail.ParseForwardPath(s, false)
		if err != nil {
			t.Fatal(err)
		}
		e.Recipients = append(e.Recipients, mail.Recipient{Path: p, Domain: p.Domain(), Notify: mail.NotifySuccess | mail.NotifyDelay})
	}
	c.apply(t, "mx1", fsm.Accept{Envelope: e, Body: mail.NewBody([]byte{n}).Ref(id(n))})
	return id(n)
}

// logBuffer collects log lines; safe for concurrent use.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// serve serves a cluster at a socket, as the daemon does, and returns a client.
func serve(t *testing.T, c Cluster) (adminpb.AdminServiceClient, *logBuffer, string) {
	t.Helper()
	logs := new(logBuffer)
	path := socketPath(t)
	l, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s := NewServer(NewService(c, slog.New(slog.NewTextHandler(logs, nil))))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.Close(ctx)
		if err := <-served; err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return dial(t, path), logs, path
}

func dial(t *testing.T, path string) adminpb.AdminServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///test", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", path)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return adminpb.NewAdminServiceClient(conn)
}

// socketPath returns a path that is short enough for a socket, which those of
// t.TempDir are not always.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "holdfast")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "admin.sock")
}
