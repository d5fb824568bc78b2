package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"holdfast": main})
}

// TestScripts runs testdata/*.txt: command lines, and what they print, against
// an admin server in this process. Scripts have a command of their own,
//
//	daemon MODE
//
// which says how that server behaves from here on, and
//
//	asked TEXT
//
// which fails unless the last change that it was asked for contains TEXT;
//
//	exported FILE
//
// fails unless FILE is the content of its messages, and for its owner alone.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			d := newFakeDaemon()
			socket, stop, err := d.serve()
			if err != nil {
				return err
			}
			env.Defer(stop)
			env.Setenv("HOLDFAST_SOCKET", socket)
			env.Values[daemonKey{}] = d
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"daemon": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Value(daemonKey{}).(*fakeDaemon).setMode(args[0])
			},
			"asked": func(ts *testscript.TestScript, neg bool, args []string) {
				asked := ts.Value(daemonKey{}).(*fakeDaemon).last()
				if strings.Contains(asked, args[0]) == neg {
					ts.Fatalf("the daemon was asked %q", asked)
				}
			},
			"exported": func(ts *testscript.TestScript, _ bool, args []string) {
				info, err := os.Stat(ts.MkAbs(args[0]))
				ts.Check(err)
				if info.Mode().Perm() != 0o600 || ts.ReadFile(args[0]) != exported {
					ts.Fatalf("%v: %q", info.Mode(), ts.ReadFile(args[0]))
				}
			},
			"status": expectStatus,
		},
	})
}

type daemonKey struct{}

// expectStatus runs holdfast and wants an exit status: "status 64 domain put".
func expectStatus(ts *testscript.TestScript, _ bool, args []string) {
	err := ts.Exec("holdfast", args[1:]...)
	got := "0"
	if err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, want %s", got, args[0])
	}
}

// The queue ids of the fake daemon's messages.
const (
	firstID = "01JZ0000000000000000000001"
	evilID  = "01JZ0000000000000000000002"
)

// A fakeDaemon answers as a node might.
type fakeDaemon struct {
	adminpb.UnimplementedAdminServiceServer

	mu    sync.Mutex
	mode  string
	asked string
	looks int // at a scrub
	// hanging gets one value when a call begins to hang.
	hanging chan struct{}
}

func newFakeDaemon() *fakeDaemon {
	return &fakeDaemon{mode: "normal", hanging: make(chan struct{}, 1)}
}

// serve serves d at a socket, whose path must be short, which those of test
// directories are not.
func (d *fakeDaemon) serve() (socket string, stop func(), err error) {
	dir, err := os.MkdirTemp("", "holdfast")
	if err != nil {
		return "", nil, err
	}
	socket = filepath.Join(dir, "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	s := grpc.NewServer()
	adminpb.RegisterAdminServiceServer(s, d)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	return socket, func() {
		s.Stop()
		<-served
		_ = os.RemoveAll(dir)
	}, nil
}

func (d *fakeDaemon) setMode(mode string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mode = mode
}

func (d *fakeDaemon) last() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

// change notes what was asked, and fails as the mode says.
func (d *fakeDaemon) change(ctx context.Context, call string, m proto.Message) error {
	d.mu.Lock()
	d.asked = fmt.Sprintf("%s %v", call, m)
	// The text form of protobuf has one or two blanks between fields, at random.
	d.asked = strings.ReplaceAll(d.asked, "  ", " ")
	mode := d.mode
	d.mu.Unlock()
	fail := func(code codes.Code, unknown bool, leader, text string) error {
		st, err := status.New(code, text).WithDetails(&adminpb.Hint{Leader: leader, OutcomeUnknown: unknown})
		if err != nil {
			return err
		}
		return st.Err()
	}
	switch mode {
	case "leaderless":
		return fail(codes.Unavailable, false, "", "nothing was changed: this node could not have it committed; try again")
	case "unknown":
		return fail(codes.DeadlineExceeded, true, "mx2", "the outcome is unknown: the change may still take effect; look before trying again")
	case "refuses":
		return fail(codes.FailedPrecondition, false, "mx2", "3 messages queued and 1 held for \"example.test\"\x1b[2J")
	case "none":
		return status.Error(codes.NotFound, "no message "+firstID)
	case "forbids":
		return status.Error(codes.PermissionDenied, "not allowed")
	case "hangs":
		return d.hang(ctx)
	}
	return nil
}

func (d *fakeDaemon) hang(ctx context.Context) error {
	select {
	case d.hanging <- struct{}{}:
	default:
	}
	<-ctx.Done()
	return status.FromContextError(ctx.Err()).Err()
}

func (d *fakeDaemon) is(mode string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mode == mode
}

func (d *fakeDaemon) freshness() *adminpb.Freshness {
	stale := int64(120)
	f := &adminpb.Freshness{Node: "mx1", AppliedIndex: 41, StaleMs: &stale, Quorum: true}
	switch {
	case d.is("stale"):
		stale = 125_000
		f.Quorum = false
	case d.is("new"):
		f.StaleMs, f.Quorum = nil, false
	case d.is("behind"):
		f.CatchingUp = true
	}
	return f
}

func (d *fakeDaemon) domains() []*adminpb.DomainStatus {
	if d.is("empty") {
		return nil
	}
	two := uint64(2)
	return []*adminpb.DomainStatus{
		{
			Domain:       &adminpb.Domain{Name: "example.test", Targets: []*adminpb.Target{{Host: "2001:db8::10", Port: 25}, {Host: "b.example", Port: 2525}}},
			NextHopState: adminpb.NextHopState_NEXT_HOP_STATE_DOWN, SinceUnix: 1_780_000_000, Detail: "connection refused\x1b]0;owned\x07",
			FailedNodes: []string{"mx1", "mx2"}, Queued: 7, Held: 1, Leased: 0, Waiting: 3, InDoubt: &two,
		},
		{Domain: &adminpb.Domain{Name: "example.org", Mx: true}, NextHopState: adminpb.NextHopState_NEXT_HOP_STATE_UP},
	}
}

func (d *fakeDaemon) members() []*adminpb.Member {
	lag, left := uint64(3), int64(90_000)
	return []*adminpb.Member{
		{Name: "mx1", ServerId: "mx1/aaa", ClusterAddress: "192.0.2.1:7420", GossipStatus: "alive", Voter: true, HasState: true, CommandVersion: 1,
			Hostname: "MX1.example.net", SmtpAddresses: []string{"192.0.2.1:25", "[2001:db8::1]:25", "192.0.2.1:2525"}},
		{Name: "mx2", ServerId: "mx2/bbb", ClusterAddress: "192.0.2.2:7420", GossipStatus: "alive", Voter: true, Leader: true, Lag: &lag,
			SaidMs: 3000, Hydration: &adminpb.Hydration{Known: true, Fetched: 4, FetchedBytes: 5000},
			Scrub: &adminpb.Scrub{BeganUnix: 1_780_000_000, EndedUnix: 1_780_000_100, Bodies: 8, Bytes: 3 << 20, TotalBodies: 8, TotalBytes: 3 << 20, Bad: 2, Repaired: 2}},
		{Name: "mx3", GossipStatus: "dead", Silent: "connection refused\x1b[31m"},
		{Name: "mx4", ServerId: "mx4/ddd", GossipStatus: "alive", Nonvoter: true, SaidMs: 1000, Hydration: &adminpb.Hydration{
			Known: true, Missing: 1200, MissingBytes: 90 << 20, Fetched: 300, FetchedBytes: 10 << 20, Rate: 1 << 20, LeftMs: &left,
			NotFound: 2, WaitingFor: "mx3", LastError: "nobody has it", LastErrorUnix: 1_780_000_000,
		}},
		{Name: "mx5", ServerId: "mx5/eee", GossipStatus: "alive"},
	}
}

// Compare has three copies, of which one may be silent or differ.
func (d *fakeDaemon) Compare(context.Context, *adminpb.CompareRequest) (*adminpb.CompareReply, error) {
	sum := bytes.Repeat([]byte{0xab}, 32)
	r := &adminpb.CompareReply{Copies: []*adminpb.Copy{
		{Node: "mx1", Index: 17, Sum: sum, Messages: 4}, {Node: "mx2", Index: 17, Sum: sum, Messages: 4}, {Node: "mx3", Index: 17, Sum: sum, Messages: 4},
	}}
	switch {
	case d.is("empty"):
		r.Copies = nil
	case d.is("silent"):
		r.Copies[1] = &adminpb.Copy{Node: "mx2", Silent: "connection refused\x1b[31m"}
	case d.is("differ"):
		r.Copies[2].Sum = bytes.Repeat([]byte{0xcd}, 32)
	case d.is("apart"):
		r.Copies[2].Index++
	}
	return r, nil
}

// Scrub has a scrub of four bodies that ends at the third look, or never did.
func (d *fakeDaemon) Scrub(ctx context.Context, r *adminpb.ScrubRequest) (*adminpb.ScrubReply, error) {
	if r.GetAction() != adminpb.ScrubRequest_LOOK {
		if err := d.change(ctx, "Scrub", r); err != nil {
			return nil, err
		}
	}
	node := r.GetNode()
	if node == "" {
		node = "mx1"
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	scrub := &adminpb.Scrub{Running: true, BeganUnix: 1_780_000_000, Bodies: uint64(d.looks), Bytes: uint64(d.looks) << 10, TotalBodies: 4, TotalBytes: 4 << 10}
	switch {
	case r.GetAction() == adminpb.ScrubRequest_STOP && d.mode == "empty":
		scrub = nil
	case r.GetAction() == adminpb.ScrubRequest_STOP:
		scrub.Running, scrub.Stopped, scrub.EndedUnix = false, true, 1_780_000_100
	case d.mode == "restarted" && d.looks > 1:
		scrub.BeganUnix++
	case d.looks > 2:
		scrub.Running, scrub.EndedUnix, scrub.Bad, scrub.Repaired = false, 1_780_000_100, 1, 1
		if d.mode == "damaged" {
			scrub.Repaired, scrub.Problem = 0, "no good copy\x1b[31m"
		}
		d.looks = 0
	}
	return &adminpb.ScrubReply{Node: node, Scrub: scrub}, nil
}

func (d *fakeDaemon) Status(ctx context.Context, _ *adminpb.StatusRequest) (*adminpb.StatusReply, error) {
	if d.is("hangs") {
		return nil, d.hang(ctx)
	}
	copies := uint32(1)
	r := &adminpb.StatusReply{
		Freshness: d.freshness(), Cluster: "example", Node: "mx1", ServerId: "mx1/aaa", Leader: "mx2", Term: 9,
		CommitIndex: 42, AppliedIndex: 41, Floor: 40, Voters: []string{"mx1", "mx2"}, Domains: d.domains(), Members: d.members(),
		Queue: &adminpb.QueueTotals{Live: 8, LiveBytes: 3 << 20, Queued: 7, Held: 1}, Spool: &adminpb.SpoolStats{Bodies: 8, Bytes: 3 << 20, Segments: 2},
		Counters: &adminpb.Counters{Accepted: 12, Repeats: 1, Delivered: 4, Expired: 3, Failed: 5, Reports: 6, ReportsDropped: 1, AcceptUnknownTotal: 2}, SmtpSessions: 5,
		Posture: "queue; nothing bounces or expires", Version: "v0",
		FewestCopies: &copies, Complete: []string{"mx2"},
		Alarms: []*adminpb.Alarm{
			{Name: "next-hop-down", Scope: "domain example.test", SinceUnix: 1_780_000_000, Cause: "nobody answers\x1b[31m", Remedy: "repair the primary"},
		},
	}
	switch {
	case d.is("empty"):
		r.Alarms, r.Voters, r.FewestCopies, r.Complete = nil, nil, nil, nil
	case d.is("stale"), d.is("new"):
		r.Leader = ""
		r.Complete, copies = nil, 0
	}
	return r, nil
}

func (d *fakeDaemon) Members(context.Context, *adminpb.MembersRequest) (*adminpb.MembersReply, error) {
	return &adminpb.MembersReply{Freshness: d.freshness(), Members: d.members()}, nil
}

func (d *fakeDaemon) ListDomains(context.Context, *adminpb.ListDomainsRequest) (*adminpb.ListDomainsReply, error) {
	return &adminpb.ListDomainsReply{Freshness: d.freshness(), Domains: d.domains()}, nil
}

func (d *fakeDaemon) PutDomain(ctx context.Context, r *adminpb.PutDomainRequest) (*adminpb.PutDomainReply, error) {
	if err := d.change(ctx, "PutDomain", r); err != nil {
		return nil, err
	}
	reply := &adminpb.PutDomainReply{}
	for _, t := range r.GetDomain().GetTargets() {
		if strings.HasPrefix(t.GetHost(), "127.") {
			reply.Warnings = append(reply.Warnings, "target is a loopback address")
		}
	}
	return reply, nil
}

func (d *fakeDaemon) RemoveDomain(ctx context.Context, r *adminpb.RemoveDomainRequest) (*adminpb.RemoveDomainReply, error) {
	return &adminpb.RemoveDomainReply{}, d.change(ctx, "RemoveDomain", r)
}

func (d *fakeDaemon) AddMember(ctx context.Context, r *adminpb.AddMemberRequest) (*adminpb.AddMemberReply, error) {
	return &adminpb.AddMemberReply{}, d.change(ctx, "AddMember", r)
}

func (d *fakeDaemon) RemoveMember(ctx context.Context, r *adminpb.RemoveMemberRequest) (*adminpb.RemoveMemberReply, error) {
	return &adminpb.RemoveMemberReply{}, d.change(ctx, "RemoveMember", r)
}

func (d *fakeDaemon) ResumeDomain(ctx context.Context, r *adminpb.ResumeDomainRequest) (*adminpb.ResumeDomainReply, error) {
	return &adminpb.ResumeDomainReply{}, d.change(ctx, "ResumeDomain", r)
}

func (d *fakeDaemon) TLSReport(ctx context.Context, r *adminpb.TLSReportRequest) (*adminpb.TLSReportReply, error) {
	if err := d.change(ctx, "TLSReport", r); err != nil {
		return nil, err
	}
	if r.GetName() == "quiet.test" {
		return &adminpb.TLSReportReply{Node: "mx1"}, nil
	}
	return &adminpb.TLSReportReply{Node: "mx1", Days: []*adminpb.TLSReportDay{{Unix: 1796083200, Policies: []*adminpb.TLSReportPolicy{
		{Domain: "example.test", PolicyType: "sts", Succeeded: 7, Failed: 2, Failures: []*adminpb.TLSReportFailure{
			{ResultType: "certificate-expired", Host: "mail.example.test", Sessions: 2},
		}},
	}}}}, nil
}

func (d *fakeDaemon) FlushDomain(ctx context.Context, r *adminpb.FlushDomainRequest) (*adminpb.FlushDomainReply, error) {
	return &adminpb.FlushDomainReply{}, d.change(ctx, "FlushDomain", r)
}

// ListQueue has 2,500 messages, and gives large pages short, as a node does that
// has looked at enough of them.
func (d *fakeDaemon) ListQueue(ctx context.Context, r *adminpb.ListQueueRequest) (*adminpb.ListQueueReply, error) {
	if err := d.change(ctx, "ListQueue", r); err != nil {
		return nil, err
	}
	reply := &adminpb.ListQueueReply{Freshness: d.freshness()}
	switch {
	case d.is("empty"):
	case d.is("many"):
		from := 0
		if r.GetPageToken() != "" {
			fmt.Sscanf(strings.TrimPrefix(r.GetPageToken(), "01JZ"), "%d", &from)
		}
		size := min(int(r.GetPageSize()), 700)
		for n := from + 1; n <= min(from+size, 2500); n++ {
			reply.Messages = append(reply.Messages, &adminpb.MessageSummary{QueueId: fmt.Sprintf("01JZ%022d", n), Recipients: 1, Queued: 1})
		}
		if from+size < 2500 {
			reply.NextPageToken = fmt.Sprintf("01JZ%022d", from+size)
		}
	default:
		reply.Messages = []*adminpb.MessageSummary{
			{QueueId: firstID, From: "a@example.com", Size: 1500, ReceivedUnix: 1_780_000_000, Node: "mx1", Domains: []string{"example.org", "example.test"},
				Recipients: 3, Queued: 1, Held: 1, Attempts: 2, Leased: true, LastReply: "451 4.3.0 later"},
			{QueueId: evilID, From: "\x1b[2J@example.com", Size: 20 << 20, Domains: []string{"example.test"}, Recipients: 1, Queued: 1,
				LastReply: "550 \x1b]52;c;ZXZpbA==\x07\u202eevil\u009b31m\n250 OK"},
		}
	}
	return reply, nil
}

func (d *fakeDaemon) ShowMessage(ctx context.Context, r *adminpb.ShowMessageRequest) (*adminpb.ShowMessageReply, error) {
	if err := d.change(ctx, "ShowMessage", r); err != nil {
		return nil, err
	}
	return &adminpb.ShowMessageReply{Freshness: d.freshness(), Message: &adminpb.Message{
		QueueId: firstID, From: "a@example.com", Size: 1500, Sha256: "abcd", ReceivedUnix: 1_780_000_000, Node: "mx1",
		Client: "198.51.100.7", Hello: "evil\x1b[2Jhost", Protocol: "ESMTPS", Tls: "TLS1.3", Ret: "HDRS", EnvelopeId: "e1", EightBit: true,
		PossibleDuplicate: true,
		Recipients: []*adminpb.RecipientStatus{
			{Path: "u@example.test", Domain: "example.test", State: adminpb.RecipientState_RECIPIENT_STATE_HELD, Reply: "550 5.1.1 unknown\x07", Reason: "refused"},
			{Path: "v@example.org", Domain: "example.org", State: adminpb.RecipientState_RECIPIENT_STATE_QUEUED},
		},
		Parts: []*adminpb.Part{
			{Domain: "example.test", Attempts: 1, Waiting: "its release"},
			{Domain: "example.org", Attempts: 2, LeaseToken: 37, Holder: "mx2", Begun: true, Waiting: "the lease of mx2"},
		},
	}}, nil
}

// exported is the content of every message, as long as three pieces.
var exported = "Subject: \x1b[2J\r\n\r\n" + strings.Repeat("0123456789abcdef\r\n", 10) + ".\xff\r\n"

func (d *fakeDaemon) ReadMessage(ctx context.Context, r *adminpb.ReadMessageRequest) (*adminpb.ReadMessageReply, error) {
	if err := d.change(ctx, "ReadMessage", r); err != nil {
		return nil, err
	}
	rest := exported[min(int(r.GetOffset()), len(exported)):]
	sum := sha256.Sum256([]byte(exported))
	if d.is("rotten") {
		rest = strings.ToUpper(rest)
	}
	return &adminpb.ReadMessageReply{Octets: []byte(rest[:min(len(rest), 80)]), Size: int64(len(exported)), Sha256: sum[:]}, nil
}

func (d *fakeDaemon) HoldMessage(ctx context.Context, r *adminpb.HoldMessageRequest) (*adminpb.HoldMessageReply, error) {
	return &adminpb.HoldMessageReply{MayStillArrive: d.is("begun")}, d.change(ctx, "HoldMessage", r)
}

func (d *fakeDaemon) ReleaseMessage(ctx context.Context, r *adminpb.ReleaseMessageRequest) (*adminpb.ReleaseMessageReply, error) {
	return &adminpb.ReleaseMessageReply{}, d.change(ctx, "ReleaseMessage", r)
}

func (d *fakeDaemon) RemoveMessage(ctx context.Context, r *adminpb.RemoveMessageRequest) (*adminpb.RemoveMessageReply, error) {
	return &adminpb.RemoveMessageReply{MayStillArrive: d.is("begun")}, d.change(ctx, "RemoveMessage", r)
}
