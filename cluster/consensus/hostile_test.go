package consensus

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// outside is a peer with a proven name that keeps to no rule.
func (c *testCluster) outside() (s *stream, host testStream) {
	c.t.Helper()
	h := c.net.Host("outside")
	listener, err := h.Listen(raftPort)
	if err != nil {
		c.t.Fatal(err)
	}
	host = testStream{listener, h}
	return newStream(host), host
}

// installDirectly sends one snapshot to a member over the wire.
func installDirectly(c *testCluster, to *testMember, req *raft.InstallSnapshotRequest, data io.Reader) (raft.InstallSnapshotResponse, error) {
	c.t.Helper()
	s, _ := c.outside()
	sender := raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: s, Logger: newLogger(testLogger("outside")), MaxPool: 1, Timeout: 100 * time.Millisecond, MsgpackUseNewTimeFormat: true,
	})
	defer sender.Close()
	var resp raft.InstallSnapshotResponse
	err := sender.InstallSnapshot(raft.ServerID(to.id()), raftAddress(to.id(), to.address()), req, &resp, data)
	return resp, err
}

// goodConfiguration is how a configuration looks that may be in a log.
func goodConfiguration(c *testCluster) raft.Configuration {
	var servers []raft.Server
	for _, name := range c.names {
		m := c.members[name]
		servers = append(servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(m.id()), Address: raftAddress(m.id(), m.address())})
	}
	return raft.Configuration{Servers: servers}
}

// TestMalformedAppendEntries: what no leader sends is refused before Raft sees
// it, whatever its term. Nothing reaches the disk, the member goes on, and it
// starts again.
func TestMalformedAppendEntries(t *testing.T) {
	noServers := raft.EncodeConfiguration(raft.Configuration{})
	twice := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "a/1", Address: "x"}, {ID: "a/1", Address: "y"}}})
	nameless := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{Address: "x"}}})
	nonvoter := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "a/1", Address: "x", Suffrage: raft.Nonvoter}}})
	odd := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{{ID: "a/1", Address: "x"}, {ID: "b/1", Address: "y", Suffrage: 77}}})
	for _, test := range []struct {
		name string
		// change spoils a good request, whose first index is next.
		change func(req *raft.AppendEntriesRequest, next uint64)
	}{
		{"a nil entry", func(r *raft.AppendEntriesRequest, _ uint64) { r.Entries[0] = nil }},
		{"a nil entry behind a good one", func(r *raft.AppendEntriesRequest, _ uint64) { r.Entries[1] = nil }},
		{"a nil entry of an old term", func(r *raft.AppendEntriesRequest, _ uint64) { r.Term, r.Entries[0] = 0, nil }},
		{"a gap before the first", func(r *raft.AppendEntriesRequest, next uint64) {
			r.Entries = []*raft.Log{{Index: next + 1, Term: r.Term, Type: raft.LogNoop}}
		}},
		{"a gap between two", func(r *raft.AppendEntriesRequest, next uint64) { r.Entries[1].Index = next + 2 }},
		{"one index twice", func(r *raft.AppendEntriesRequest, next uint64) { r.Entries[1].Index = next }},
		{"the greatest predecessor", func(r *raft.AppendEntriesRequest, _ uint64) {
			r.PrevLogEntry, r.Entries[0].Index, r.Entries[1].Index = ^uint64(0), 0, 1
		}},
		{"a predecessor beyond all", func(r *raft.AppendEntriesRequest, _ uint64) { r.PrevLogEntry, r.Entries = ^uint64(0), nil }},
		{"a commit index beyond all", func(r *raft.AppendEntriesRequest, _ uint64) { r.LeaderCommitIndex = ^uint64(0) }},
		{"too many entries", func(r *raft.AppendEntriesRequest, next uint64) {
			r.Entries = nil
			for i := range uint64(entriesReceivedMax + 1) {
				r.Entries = append(r.Entries, &raft.Log{Index: next + i, Term: r.Term, Type: raft.LogNoop})
			}
		}},
		{"too large an entry", func(r *raft.AppendEntriesRequest, _ uint64) { r.Entries[1].Data = make([]byte, appendBytesMax+1) }},
		{"an entry of a later term", func(r *raft.AppendEntriesRequest, _ uint64) { r.Entries[1].Term++ }},
		{"an unknown type", func(r *raft.AppendEntriesRequest, _ uint64) { r.Entries[1].Type = 99 }},
		{"an old way to add a peer", func(r *raft.AppendEntriesRequest, _ uint64) { r.Entries[1].Type = raft.LogAddPeerDeprecated }},
		{"an old way to remove a peer", func(r *raft.AppendEntriesRequest, _ uint64) { r.Entries[1].Type = raft.LogRemovePeerDeprecated }},
		{"a configuration of garbage", func(r *raft.AppendEntriesRequest, _ uint64) {
			r.Entries[1].Type, r.Entries[1].Data = raft.LogConfiguration, []byte("\xc1garbage")
		}},
		{"a configuration of garbage at a gap", func(r *raft.AppendEntriesRequest, next uint64) {
			r.Entries[1].Type, r.Entries[1].Data, r.Entries[1].Index = raft.LogConfiguration, []byte("\xc1garbage"), next+5
		}},
		{"an empty configuration", func(r *raft.AppendEntriesRequest, _ uint64) { r.Entries[1].Type = raft.LogConfiguration }},
		{"a deeply nested configuration", func(r *raft.AppendEntriesRequest, _ uint64) {
			r.Entries[1].Type, r.Entries[1].Data = raft.LogConfiguration, bytes.Repeat([]byte{0x91}, EntryBytesMax)
		}},
		{"a configuration without servers", func(r *raft.AppendEntriesRequest, _ uint64) {
			r.Entries[1].Type, r.Entries[1].Data = raft.LogConfiguration, noServers
		}},
		{"a configuration without voters", func(r *raft.AppendEntriesRequest, _ uint64) {
			r.Entries[1].Type, r.Entries[1].Data = raft.LogConfiguration, nonvoter
		}},
		{"a configuration with a server twice", func(r *raft.AppendEntriesRequest, _ uint64) {
			r.Entries[1].Type, r.Entries[1].Data = raft.LogConfiguration, twice
		}},
		{"a configuration with a nameless server", func(r *raft.AppendEntriesRequest, _ uint64) {
			r.Entries[1].Type, r.Entries[1].Data = raft.LogConfiguration, nameless
		}},
		{"a configuration with an unknown suffrage", func(r *raft.AppendEntriesRequest, _ uint64) {
			r.Entries[1].Type, r.Entries[1].Data = raft.LogConfiguration, odd
		}},
		{"no sender", func(r *raft.AppendEntriesRequest, _ uint64) { r.ID = nil }},
		{"no address", func(r *raft.AppendEntriesRequest, _ uint64) { r.Addr = nil }},
		{"a sender without end", func(r *raft.AppendEntriesRequest, _ uint64) { r.ID = make([]byte, senderBytesMax+1) }},
	} {
		t.Run(test.name, func(t *testing.T) {
			inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
				c.up()
				c.bootstrap()
				a := c.leader()
				c.commit(a)
				_, last := a.disk.Bounds()
				prev, _ := a.disk.Entry(last)
				term := a.node().Term()
				req := &raft.AppendEntriesRequest{
					RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("b/1"), Addr: []byte("b/1")},
					Term:      term, PrevLogEntry: last, PrevLogTerm: prev.Term,
					Entries: []*raft.Log{
						{Index: last + 1, Term: term, Type: raft.LogNoop},
						{Index: last + 2, Term: term, Type: raft.LogNoop},
					},
				}
				test.change(req, last+1)
				resp, err := sendDirectly(c, a, req)
				if err == nil || !strings.HasPrefix(err.Error(), errMalformed.Error()) || resp.Success {
					t.Errorf("answer %+v, %v; want a refusal as malformed", resp, err)
				}
				if _, now := a.disk.Bounds(); now != last {
					t.Errorf("the log went on from %d to %d", last, now)
				}
				if s := a.node().Stats(); s.Malformed != 1 || s.GateRefusals != 0 {
					t.Errorf("%+v, want one malformed request", s)
				}
				if a.node().Floor() != 0 || a.node().Err() != nil {
					t.Errorf("floor %d, failed: %v", a.node().Floor(), a.node().Err())
				}
				a.kill()
				c.up()
				c.commit(c.leader())
			})
		})
	}
}

// TestMalformedVotes: requests for a vote, and to stand at once, that name
// nobody are refused. Raft skips its own checks for them.
func TestMalformedVotes(t *testing.T) {
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax}
	for _, request := range []any{
		&raft.RequestVoteRequest{RPCHeader: header, Term: 9, LastLogIndex: 9},
		&raft.RequestPreVoteRequest{RPCHeader: header, Term: 9, LastLogIndex: 9},
		&raft.TimeoutNowRequest{RPCHeader: header},
		&raft.AppendEntriesRequest{RPCHeader: header, Term: 9},
		&raft.InstallSnapshotRequest{RPCHeader: header, Term: 9},
		"no request at all",
		nil,
	} {
		if err := wellFormed(request); !errors.Is(err, errMalformed) {
			t.Errorf("%T: %v", request, err)
		}
	}
	header.ID, header.Addr = []byte("b/1"), []byte("b/1")
	for _, request := range []any{
		&raft.RequestVoteRequest{RPCHeader: header, Term: 9},
		&raft.RequestPreVoteRequest{RPCHeader: header, Term: 9},
		&raft.TimeoutNowRequest{RPCHeader: header},
		&raft.AppendEntriesRequest{RPCHeader: header, Term: 9},
	} {
		if err := wellFormed(request); err != nil {
			t.Errorf("%T: %v", request, err)
		}
	}
}

// TestMalformedInstallSnapshot: as for entries.
func TestMalformedInstallSnapshot(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(*raft.InstallSnapshotRequest)
	}{
		{"a configuration of garbage", func(r *raft.InstallSnapshotRequest) { r.Configuration = []byte("\xc1garbage") }},
		{"no configuration", func(r *raft.InstallSnapshotRequest) { r.Configuration = nil }},
		{"a negative size", func(r *raft.InstallSnapshotRequest) { r.Size = -1 }},
		{"an immense size", func(r *raft.InstallSnapshotRequest) { r.Size = snapshotBytesMax + 1 }},
		{"the greatest index", func(r *raft.InstallSnapshotRequest) { r.LastLogIndex = ^uint64(0) }},
		{"no index", func(r *raft.InstallSnapshotRequest) { r.LastLogIndex, r.ConfigurationIndex = 0, 0 }},
		{"a configuration from behind it", func(r *raft.InstallSnapshotRequest) { r.ConfigurationIndex = r.LastLogIndex + 1 }},
		{"an entry of a later term", func(r *raft.InstallSnapshotRequest) { r.LastLogTerm = r.Term + 1 }},
		{"an old version", func(r *raft.InstallSnapshotRequest) { r.SnapshotVersion = 0 }},
		{"a later version", func(r *raft.InstallSnapshotRequest) { r.SnapshotVersion = 2 }},
	} {
		t.Run(test.name, func(t *testing.T) {
			inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
				c.up()
				c.bootstrap()
				a := c.leader()
				c.commit(a)
				_, last := a.disk.Bounds()
				data := "no snapshot"
				req := &raft.InstallSnapshotRequest{
					RPCHeader:       raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("b/1"), Addr: []byte("b/1")},
					SnapshotVersion: 1, Term: a.node().Term(), LastLogIndex: 100, LastLogTerm: 1,
					Configuration: raft.EncodeConfiguration(goodConfiguration(c)), ConfigurationIndex: 1,
					Size: int64(len(data)),
				}
				test.change(req)
				if req.Size > snapshotBytesMax {
					// What is promised never comes; the connection ends instead.
					data = ""
				}
				resp, err := installDirectly(c, a, req, strings.NewReader(data))
				if err == nil || resp.Success {
					t.Errorf("answer %+v, %v; want a refusal", resp, err)
				}
				if s := a.node().Stats(); s.Malformed != 1 {
					t.Errorf("%+v, want one malformed request", s)
				}
				if a.node().Err() != nil || a.node().LastIndex() != last {
					t.Errorf("last index %d, failed: %v", a.node().LastIndex(), a.node().Err())
				}
				a.kill()
				c.up()
				c.commit(c.leader())
			})
		})
	}
}

// flood opens a connection to a member, sends start and then octets until the
// member hangs up, at most max. It returns how many were sent.
func flood(c *testCluster, to *testMember, start string, octet byte, max int) int {
	c.t.Helper()
	_, host := c.outside()
	defer host.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := host.Dial(ctx, to.id(), to.address())
	if err != nil {
		c.t.Fatal(err)
	}
	defer conn.Close()
	sent := 0
	piece := []byte(start)
	for sent < max {
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			c.t.Fatal(err)
		}
		n, err := conn.Write(piece)
		sent += n
		if err != nil {
			break
		}
		piece = bytes.Repeat([]byte{octet}, 64<<10)
	}
	return sent
}

// TestRequestsHaveAnEnd: of a request that announces more than any has, a
// member reads no more than a request may be, whatever its kind.
func TestRequestsHaveAnEnd(t *testing.T) {
	for _, test := range []struct {
		name, start string
		octet       byte
	}{
		{"append entries, binary", "\x00\x81\xa6Leader\xc6\x7f\xff\xff\xff", 'x'},
		{"append entries, nil entries", "\x00\x81\xa7Entries\xdd\x7f\xff\xff\xff", 0xc0},
		{"append entries, empty entries", "\x00\x81\xa7Entries\xdd\x7f\xff\xff\xff", 0x80},
		{"append entries, nested", "\x00\x81\xa7Unknown", 0x91},
		{"append entries, small entries", "\x00\x81\xa7Entries\xdc\xff\xff", 0x80},
		{"vote, string", "\x01\x81\xdb\x7f\xff\xff\xff", 'x'},
		{"snapshot, binary", "\x02\x81\xadConfiguration\xc6\x7f\xff\xff\xff", 'x'},
		{"pre-vote, extension", "\x04\x81\xa4Term\xc9\x7f\xff\xff\xff", 'x'},
		{"many binaries", "\x00\xdf\x7f\xff\xff\xff", 0xc4},
	} {
		t.Run(test.name, func(t *testing.T) {
			inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
				c.up()
				c.bootstrap()
				a := c.leader()
				const far = 16 * requestBytesMax
				if sent := flood(c, a, test.start, test.octet, far); sent >= far {
					t.Errorf("it took %d octets", sent)
				}
				c.commit(a)
			})
		})
	}
}

// TestSnapshotsMayBeLong: the data of a snapshot is no part of the request.
func TestSnapshotsMayBeLong(t *testing.T) {
	inCluster(t, 1, clusterOptions{}, func(t *testing.T, c *testCluster) {
		c.up()
		c.bootstrap()
		a := c.leader()
		c.commit(a)
		// This one is covered by the log, so that it is read and not installed.
		_, last := a.disk.Bounds()
		entry, _ := a.disk.Entry(last)
		const size = 4 * requestBytesMax
		resp, err := installDirectly(c, a, &raft.InstallSnapshotRequest{
			RPCHeader:       raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("b/1"), Addr: []byte("b/1")},
			SnapshotVersion: 1, Term: a.node().Term(), LastLogIndex: last, LastLogTerm: entry.Term,
			Configuration: raft.EncodeConfiguration(goodConfiguration(c)), ConfigurationIndex: 1,
			Size: size,
		}, bytes.NewReader(make([]byte, size)))
		if err != nil || !resp.Success {
			t.Errorf("answer %+v, %v", resp, err)
		}
	})
}
