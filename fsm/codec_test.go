package fsm_test

import (
	"bytes"
	"compress/flate"
	"encoding/binary"
	"errors"
	"io"
	"maps"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/fsmtest"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// everyAction is one full command of each kind.
func everyAction() []fsm.Action {
	id, id2 := mail.MintQueueID(1, [10]byte{1}), mail.MintQueueID(2, [10]byte{2})
	from, _ := mail.ParseReversePath("s@X.test", false)
	to, _ := mail.ParseForwardPath(`"a b"@A.test`, false)
	return []fsm.Action{
		fsm.Accept{
			Envelope: mail.Envelope{
				From: from,
				Recipients: []mail.Recipient{
					{Path: to, Domain: "a.test", Notify: mail.NotifySuccess | mail.NotifyDelay, Original: "rfc822;a+20b@a.test"},
					{Path: mail.ForwardPath{Mailbox: mail.Mailbox{Local: "ü", Host: "b.test"}}, Domain: "b.test"},
				},
				Return: mail.ReturnHeaders, EnvelopeID: "Q1", EightBit: true, SMTPUTF8: true,
				Trace: mail.Trace{
					Hello: "x.test", Client: netip.MustParseAddr("2001:db8::7"), Node: "n.test", Protocol: "UTF8SMTPS",
					TLS: "TLS1.3 TLS_AES_128_GCM_SHA256", Received: 1_790_000_000,
				},
			},
			Body: mail.NewBody([]byte("hello")).Ref(id),
		},
		fsm.Settle{},
		fsm.GrantLeases{Holder: "n1", Domain: "a.test", Messages: []mail.QueueID{id, id2}},
		fsm.RenewLeases{Holder: "n1", Token: 7, Request: fsm.RequestID{Boot: 1 << 63, Number: 9}, Begun: []mail.QueueID{id2}},
		fsm.ExpireLeases{Token: 7, Renewal: 8},
		fsm.RecordOutcomes{Holder: "n1", Token: 7, Messages: []fsm.MessageOutcomes{{ID: id, Recipients: []fsm.RecipientOutcome{
			{Recipient: 3, Outcome: fsm.Failed, Tried: true, Reply: mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{5, 1, 1}, Text: "no"}},
			{Outcome: fsm.Deferred},
		}}}},
		fsm.Hold{ID: id, Reason: "odd"},
		fsm.Release{ID: id},
		fsm.Remove{ID: id},
		fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", Targets: []fsm.Target{{Host: "2001:db8::25", Port: 25}, {Host: "mail.a.test", Port: 2525}}}},
		fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", MX: true}},
		fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", MX: true, Callers: fsm.Callers{Pins: [][32]byte{{1}, {2}}}}},
		fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", OnDemand: true, Callers: fsm.Callers{User: "mail.a.test", Secret: "hash"}}},
		fsm.RemoveDomain{Name: "a.test"},
		fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", MX: true, ConnectionsMax: 7, TLS: fsm.TLSPolicy{Mode: fsm.TLSVerify, Pins: [][32]byte{{1}, {2}}, Authorities: "PEM", Names: []string{"mail.a.test"}}, ETRN: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}, Schedule: fsm.Schedule{RetryMin: 1, RetryMax: 2, Lifetime: 3}}},
		fsm.FlushDomain{Name: "a.test"},
		fsm.ResumeDomain{Name: "a.test"},
		fsm.ReportNextHop{Node: "n1", Domain: "a.test", Up: true, Detail: "220 hello"},
		fsm.ReportNextHop{Node: "n1", Domain: "a.test", Refused: true, Detail: "421 later"},
		fsm.PutSettings{Settings: fsm.Settings{DoubtWait: 1, FingerprintLife: 2, FingerprintMax: 3, RecordLife: 4, RetryMin: 5, RetryMax: 6, Voters: 7}},
		fsm.Tick{Elapsed: -5},
		fsm.RecordStart{Server: "n1/0102", Number: 3},
	}
}

func TestCommandsGoThroughTheirEncoding(t *testing.T) {
	for _, a := range everyAction() {
		want := fsm.Command{Node: "n1", Settled: []mail.QueueID{{9}}, Action: a}
		b, err := fsm.EncodeCommand(want)
		if err != nil {
			t.Fatalf("%T: %v", a, err)
		}
		got, err := fsm.DecodeCommand(b)
		if err != nil {
			t.Fatalf("%T: %v", a, err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%T\n got %+v\nwant %+v", a, got, want)
		}
		if _, is := a.(fsm.RecordStart); fsm.MayRecordStart(b) != (is || fsm.VersionOf(a) > 1) {
			t.Errorf("%T: may be a start: %v", a, !is)
		}
	}
	if !fsm.MayRecordStart(nil) {
		t.Error("nothing is certainly no start")
	}
	if _, err := fsm.EncodeCommand(fsm.Command{}); !errors.Is(err, fsm.ErrUnknownCommand) {
		t.Errorf("no action: %v", err)
	}
}

// TestNewerCommandsStopTheNode: whatever this version does not know, however
// deep, is ErrUnknownCommand, never skipped.
func TestNewerCommandsStopTheNode(t *testing.T) {
	newer := protowire.AppendVarint(protowire.AppendTag(nil, 99, protowire.VarintType), 1)
	for _, a := range everyAction() {
		b, err := fsm.EncodeCommand(fsm.Command{Action: a})
		if err != nil {
			t.Fatal(err)
		}
		var p queuepb.Command
		if err := proto.Unmarshal(b, &p); err != nil {
			t.Fatal(err)
		}
		fields := 0
		eachMessage(p.ProtoReflect(), func(set func([]byte)) {
			fields++
			set(newer)
			b, err := proto.Marshal(&p)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := fsm.DecodeCommand(b); !errors.Is(err, fsm.ErrUnknownCommand) {
				t.Errorf("%T with an unknown field: %v", a, err)
			}
			set(nil)
		})
		if fields < 2 {
			t.Errorf("%T: %d messages", a, fields)
		}
		is := p.Version
		for version := range uint32(fsm.CommandVersion + 2) {
			if version == is {
				continue
			}
			p.Version = version
			b, _ := proto.Marshal(&p)
			if _, err := fsm.DecodeCommand(b); !errors.Is(err, fsm.ErrUnknownCommand) {
				t.Errorf("version %d: %v", version, err)
			}
		}
	}
	unknownOutcome := &queuepb.Command{Version: 1, Action: &queuepb.Command_RecordOutcomes{RecordOutcomes: &queuepb.RecordOutcomes{
		Messages: []*queuepb.MessageOutcomes{{Id: make([]byte, 16), Recipients: []*queuepb.RecipientOutcome{{Outcome: 9}}}},
	}}}
	b, _ := proto.Marshal(unknownOutcome)
	if _, err := fsm.DecodeCommand(b); !errors.Is(err, fsm.ErrUnknownCommand) {
		t.Errorf("unknown outcome: %v", err)
	}
	// A kind of a newer version is an unknown field of Command.
	kind := protowire.AppendBytes(protowire.AppendTag(protowire.AppendVarint(protowire.AppendTag(nil, 1, protowire.VarintType), 1), 77, protowire.BytesType), nil)
	if _, err := fsm.DecodeCommand(kind); !errors.Is(err, fsm.ErrUnknownCommand) {
		t.Errorf("unknown kind: %v", err)
	}
}

func TestMalformedCommands(t *testing.T) {
	for what, p := range map[string]*queuepb.Command{
		"no action":          {Version: 1},
		"short settled id":   {Version: 1, Settled: []byte{1}, Action: &queuepb.Command_Settle{Settle: &queuepb.Settle{}}},
		"short id":           {Version: 1, Action: &queuepb.Command_Hold{Hold: &queuepb.Hold{Id: []byte{1}}}},
		"short list of ids":  {Version: 1, Action: &queuepb.Command_GrantLeases{GrantLeases: &queuepb.GrantLeases{Messages: make([]byte, 17)}}},
		"accept of nothing":  {Version: 1, Action: &queuepb.Command_Accept{Accept: &queuepb.Accept{}}},
		"no digest":          {Version: 1, Action: &queuepb.Command_Accept{Accept: &queuepb.Accept{Id: make([]byte, 16)}}},
		"no envelope":        {Version: 1, Action: &queuepb.Command_Accept{Accept: &queuepb.Accept{Id: make([]byte, 16), Digest: make([]byte, 32)}}},
		"port above 65535":   {Version: 1, Action: &queuepb.Command_PutDomain{PutDomain: &queuepb.PutDomain{Domain: &queuepb.RelayDomain{Targets: []*queuepb.Target{{Port: 1 << 16}}}}}},
		"address of 5 bytes": {Version: 1, Action: &queuepb.Command_Accept{Accept: &queuepb.Accept{Id: make([]byte, 16), Digest: make([]byte, 32), Envelope: &queuepb.Envelope{Trace: &queuepb.Trace{Client: make([]byte, 5)}}}}},
	} {
		b, err := proto.Marshal(p)
		if err != nil {
			t.Fatal(err)
		}
		if c, err := fsm.DecodeCommand(b); err == nil || errors.Is(err, fsm.ErrUnknownCommand) {
			t.Errorf("%s: %+v, %v", what, c, err)
		}
	}
	for _, b := range [][]byte{{0xff}, []byte("garbage")} {
		if _, err := fsm.DecodeCommand(b); err == nil {
			t.Errorf("%q is read", b)
		}
	}
}

func TestResultsGoThroughTheirEncoding(t *testing.T) {
	for _, want := range []fsm.Result{
		{Verdict: fsm.Done},
		{Verdict: fsm.Repeat, ID: mail.QueueID{1}},
		{Verdict: fsm.Refused, Text: "why", MayStillArrive: true, Messages: []mail.QueueID{{1}, {2}}},
	} {
		if got, err := fsm.DecodeResult(fsm.EncodeResult(want)); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got %+v, %v, want %+v", got, err, want)
		}
	}
	for _, b := range [][]byte{nil, {0xff}, fsm.EncodeResult(fsm.Result{}), fsm.EncodeResult(fsm.Result{Verdict: 9})} {
		if r, err := fsm.DecodeResult(b); err == nil {
			t.Errorf("%q is read as %+v", b, r)
		}
	}
}

// busy returns a State with something of everything in it.
func busy(t testing.TB) *fsm.State {
	for seed := range uint64(100) {
		s := fsm.New()
		if err := fsmtest.NewHistory(s, nil, newSeeded(seed)).Run(120); err != nil {
			t.Fatal(err)
		}
		if n := s.Totals(); n.Leases > 2 && n.Removed > 0 && n.Fingerprints > 2 && n.Aliases > 2 && n.Live > 8 && n.Live < n.Messages && n.Marked > 0 && s.Settings().WaitsPerEntry > 0 && s.Counts("a.test").Due > 1 {
			guard(t, s)
			return s
		}
	}
	t.Fatal("no history has everything")
	return nil
}

// guard gives a.test all that an administrator can, with a recipient that is known
// good, a message that was released, and a next hop that has just come back.
func guard(t testing.TB, s *fsm.State) {
	apply(s, fsm.PutDomain{Domain: fsm.Domain{
		Name: "a.test", MX: true, ConnectionsMax: 7, ETRN: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
		Schedule: fsm.Schedule{RetryMin: 60_000, RetryMax: 120_000, Lifetime: fsm.LifetimeDefault},
		Bounce:   fsm.BounceAlways, DelayWarning: 60_000, XClient: true, TLS: fsm.TLSPolicy{Mode: fsm.TLSMTASTS},
		Callers: fsm.Callers{Pins: [][32]byte{{7}}, User: "mail.a.test", Secret: "hash"},
	}})
	apply(s, fsm.PutDomain{Domain: fsm.Domain{Name: "d.test", OnDemand: true}})
	apply(s, fsm.RecordPolicy{Domain: "a.test", Policy: fsm.STSPolicy{ID: "1", Text: "version: STSv1", Fetched: 5}})
	reports(t, s)
	due := slices.Collect(s.Due("a.test"))
	apply(s, fsm.GrantLeases{Holder: "n1", Domain: "a.test", Messages: due[:1]})
	report := fsm.RecordOutcomes{Holder: "n1", Token: fsm.Token(s.Applied()), Messages: []fsm.MessageOutcomes{{ID: due[0]}}}
	m, _ := s.Message(due[0])
	for _, k := range m.Queued("a.test") {
		report.Messages[0].Recipients = append(report.Messages[0].Recipients, fsm.RecipientOutcome{Recipient: k, Outcome: fsm.Delivered, Tried: true})
	}
	for _, a := range []fsm.Action{
		report, fsm.Hold{ID: due[1]}, fsm.Release{ID: due[1]},
		fsm.ReportNextHop{Node: "n1", Domain: "a.test"}, fsm.ReportNextHop{Node: "n2", Domain: "a.test"}, fsm.ReportNextHop{Node: "n2", Domain: "a.test", Up: true},
		fsm.ReportNextHop{Node: "n1", Domain: "b.test", Refused: true}, fsm.ReportNextHop{Node: "n2", Domain: "b.test", Refused: true}, fsm.ReportNextHop{Node: "n3", Domain: "b.test"},
	} {
		if r := apply(s, a); r.Verdict != fsm.Done {
			t.Fatalf("%T: %+v", a, r)
		}
	}
	if s.KnownRecipients() == 0 || !s.NextHop("a.test").Guarded {
		t.Fatalf("%d known, %+v", s.KnownRecipients(), s.NextHop("a.test"))
	}
}

// reports gives s messages whose senders are to be told something, of each kind, and a
// report on its way.
func reports(t testing.TB, s *fsm.State) {
	from, _ := mail.ParseReversePath("s@x.test", false)
	to, _ := mail.ParseForwardPath("p@a.test", false)
	id := func(n byte) mail.QueueID { return mail.MintQueueID(1_800_000_000_000, [10]byte{n}) }
	send := func(n byte, notify mail.Notify, outcome fsm.RecipientOutcome) {
		e := mail.Envelope{From: from, Recipients: []mail.Recipient{{Path: to, Domain: "a.test", Notify: notify}}}
		apply(s, fsm.Accept{Envelope: e, Body: mail.NewBody([]byte{n}).Ref(id(n))})
		if outcome.Outcome == 0 {
			return
		}
		apply(s, fsm.GrantLeases{Holder: "n1", Domain: "a.test", Messages: []mail.QueueID{id(n)}})
		apply(s, fsm.RecordOutcomes{Holder: "n1", Token: fsm.Token(s.Applied()), Messages: []fsm.MessageOutcomes{{ID: id(n), Recipients: []fsm.RecipientOutcome{outcome}}}})
	}
	no := fsm.RecipientOutcome{Outcome: fsm.Failed, Tried: true, Reply: mail.Reply{Code: 550, Text: "no"}}
	send(1, 0, no)
	send(2, 0, no)
	send(3, mail.NotifySuccess, fsm.RecipientOutcome{Outcome: fsm.Delivered, Tried: true, Relayed: true})
	send(4, mail.NotifyDelay, fsm.RecipientOutcome{})
	report := mail.Envelope{Recipients: []mail.Recipient{{Path: mail.ForwardPath{Mailbox: from.Mailbox}, Domain: fsm.OutboundDomain("x.test")}}}
	apply(s, fsm.IssueReport{Message: id(1), Kind: fsm.ReportFailure, Recipients: []int{0}, Report: fsm.Accept{Envelope: report, Body: mail.NewBody([]byte("report")).Ref(id(9))}})
	apply(s, fsm.Tick{Elapsed: 60_000})
	owing := make(map[fsm.ReportKind]bool)
	for m := range s.Owing(0) {
		for _, r := range m.Recipients {
			owing[r.Report] = r.Report != 0
		}
	}
	delete(owing, 0)
	if len(owing) != 3 || len(s.Destinations()) == len(s.Domains()) {
		t.Fatalf("owing %v, destinations %v", owing, s.Destinations())
	}
}

// TestDamagedSnapshots: cut anywhere it is refused, and no flipped byte, before
// or behind the compression, panics or gives a State that breaks an invariant.
// (The file's checksum is the shell's; this is about what may not happen in
// spite of it.)
func TestDamagedSnapshots(t *testing.T) {
	queue := busy(t)
	if _, started := maps.Collect(queue.Starts())["n1/1"]; !started {
		apply(queue, fsm.RecordStart{Server: "n1/1", Number: 1}) // else it is written in version 1
	}
	whole := encoded(t, queue)
	for n := range len(whole) {
		if s, err := fsm.Decode(bytes.NewReader(whole[:n])); err == nil {
			t.Fatalf("cut at %d of %d: %d messages", n, len(whole), s.Totals().Messages)
		} else if !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Fatalf("cut at %d: %v", n, err)
		}
	}
	if _, err := fsm.Decode(io.MultiReader(bytes.NewReader(compressed(t, append(inflated(t, whole), 0))))); err == nil || !strings.Contains(err.Error(), "follows the end") {
		t.Errorf("an octet behind the end: %v", err)
	}
	for what, put := range map[string]func([]byte) []byte{
		"compressed": func(b []byte) []byte { return b },
		"records":    func(b []byte) []byte { return compressed(t, b) },
	} {
		octets := whole
		if what == "records" {
			octets = inflated(t, whole)
		}
		refused := 0
		for n := 0; n < len(octets); n += 3 {
			damaged := slices.Clone(octets)
			damaged[n] ^= 1 << (n % 8)
			s, err := fsm.Decode(bytes.NewReader(put(damaged)))
			if err != nil {
				refused++
				continue
			}
			if err := s.Check(); err != nil {
				t.Fatalf("%s: byte %d flipped: %v", what, n, err)
			}
			touch(s)
		}
		t.Logf("%s: %d of %d damaged snapshots refused", what, refused, len(octets)/3)
	}
}

// TestContradictorySnapshots: Decode makes the indexes itself, and verifies what they
// are made of. A snapshot whose records contradict one another is refused, and what
// is not refused breaks no invariant.
func TestContradictorySnapshots(t *testing.T) {
	queue := busy(t)
	apply(queue, fsm.RecordStart{Server: "n1/1", Number: 1}) // else it is written in version 1
	apply(queue, fsm.Tick{Elapsed: 1000})
	recipients := func(id []byte) int {
		m, _ := queue.Message(mail.QueueID(id))
		return len(m.Recipients)
	}
	for m := range queue.Messages(mail.QueueID{}) {
		if len(m.Parts) == 1 && m.Parts[0].Lease == 0 && m.Settled {
			apply(queue, fsm.Remove{ID: m.ID})
		}
	}
	whole := encoded(t, queue)
	header, octets := whole[:headerBytes(t, whole)], inflated(t, whole)[headerBytes(t, whole):]
	var records []*queuepb.SnapshotRecord
	for len(octets) > 0 {
		length, n := binary.Uvarint(octets)
		r := new(queuepb.SnapshotRecord)
		if err := proto.Unmarshal(octets[n:n+int(length)], r); err != nil {
			t.Fatal(err)
		}
		records, octets = append(records, r), octets[n+int(length):]
	}
	decode := func(records []*queuepb.SnapshotRecord) (*fsm.State, error) {
		b := slices.Clone(header)
		for _, r := range records {
			if r.GetEnd() != nil {
				r.GetEnd().Records = uint64(len(records)) // the header counts, too
			}
			encoded, err := proto.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			b = append(binary.AppendUvarint(b, uint64(len(encoded))), encoded...)
		}
		return fsm.Decode(bytes.NewReader(compressed(t, b)))
	}
	clone := func() (all []*queuepb.SnapshotRecord) {
		for _, r := range records {
			all = append(all, proto.Clone(r).(*queuepb.SnapshotRecord))
		}
		return all
	}
	if _, err := decode(clone()); err != nil {
		t.Fatal(err)
	}

	message := func(which func(*queuepb.MessageRecord) bool, change func(*queuepb.MessageRecord)) func([]*queuepb.SnapshotRecord) bool {
		return func(all []*queuepb.SnapshotRecord) bool {
			for _, r := range all {
				if m := r.GetMessage(); m != nil && which(m) {
					change(m)
					return true
				}
			}
			return false
		}
	}
	leased := func(m *queuepb.MessageRecord) bool { return m.Parts[0].Lease != 0 }
	queued := func(m *queuepb.MessageRecord) bool {
		return len(m.Notes) == 0 && m.Parts[0].Lease == 0 && m.Parts[0].RetryAt == 0 && m.Parts[0].DoubtUntil == 0
	}
	lease := func(change func(*queuepb.LeaseRecord)) func([]*queuepb.SnapshotRecord) bool {
		return func(all []*queuepb.SnapshotRecord) bool {
			for _, r := range all {
				if l := r.GetLease(); l != nil {
					change(l)
					return true
				}
			}
			return false
		}
	}
	late := uint64(queue.Applied()) + 1
	first := records[slices.IndexFunc(records, func(r *queuepb.SnapshotRecord) bool { return r.GetMessage() != nil })].GetMessage()
	for name, change := range map[string]func([]*queuepb.SnapshotRecord) bool{
		"a message of a later entry": func(all []*queuepb.SnapshotRecord) bool {
			for i := range all {
				if m := all[len(all)-1-i].GetMessage(); m != nil {
					m.Entry = late
					return true
				}
			}
			return false
		},
		"two messages with one id":   message(func(m *queuepb.MessageRecord) bool { return m.Entry > first.Entry }, func(m *queuepb.MessageRecord) { m.Id = first.Id }),
		"begun without a lease":      message(queued, func(m *queuepb.MessageRecord) { m.Parts[0].Begun = true }),
		"in no lease":                message(leased, func(m *queuepb.MessageRecord) { m.Parts[0].Lease += 1 << 30 }),
		"of no domain":               message(queued, func(m *queuepb.MessageRecord) { m.Parts[0].Domain += 1000 }),
		"ended later than now":       message(func(m *queuepb.MessageRecord) bool { return m.Ended > 0 }, func(m *queuepb.MessageRecord) { m.Ended = 1 << 50 }),
		"settled with a fingerprint": message(func(m *queuepb.MessageRecord) bool { return m.FingerprintKept }, func(m *queuepb.MessageRecord) { m.Settled = true }),
		"removed with a fingerprint": message(func(m *queuepb.MessageRecord) bool { return m.FingerprintKept && queued(m) }, func(m *queuepb.MessageRecord) {
			for range recipients(m.Id) {
				m.Notes = append(m.Notes, &queuepb.NoteRecord{State: queuepb.RecipientState_RECIPIENT_STATE_REMOVED})
			}
		}),
		"a lease of another domain": lease(func(l *queuepb.LeaseRecord) { l.Domain++ }),
		"a lease without a message": lease(func(l *queuepb.LeaseRecord) { l.Token++ }),
		"a lease renewed later":     lease(func(l *queuepb.LeaseRecord) { l.Renewal = late }),
		"a lease renewed before it": lease(func(l *queuepb.LeaseRecord) { l.Renewal = l.Token - 1 }),
		"an alias that is a message": func(all []*queuepb.SnapshotRecord) bool {
			return alias(all, func(a *queuepb.AliasRecord) { a.Id = first.Id })
		},
		"an alias of nothing": func(all []*queuepb.SnapshotRecord) bool {
			return alias(all, func(a *queuepb.AliasRecord) { a.Entry = late })
		},
		"a message that is an alias": func(all []*queuepb.SnapshotRecord) bool {
			a := slices.IndexFunc(all, func(r *queuepb.SnapshotRecord) bool { return r.GetAlias() != nil })
			after := slices.IndexFunc(all, func(r *queuepb.SnapshotRecord) bool { return r.GetMessage().GetEntry() > all[a].GetAlias().Entry })
			if after < 0 {
				return false
			}
			all[after].GetMessage().Id = all[a].GetAlias().Id
			moved := all[a]
			copy(all[after+1:a+1], all[after:a])
			all[after] = moved
			return true
		},
	} {
		all := clone()
		if !change(all) {
			t.Errorf("%s: the queue has nothing to show it with", name)
		} else if _, err := decode(all); err == nil {
			t.Errorf("%s: read", name)
		}
	}

	// Anything, anywhere.
	random := rand.New(rand.NewPCG(1, 1))
	read := 0
	for range 3000 {
		all := clone()
		scramble(random, all[random.IntN(len(all)-1)].ProtoReflect(), all[random.IntN(len(all)-1)].ProtoReflect())
		s, err := decode(all)
		if err != nil {
			continue
		}
		read++
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		touch(s)
	}
	t.Logf("%d of 3000 scrambled snapshots were read", read)
}

func alias(all []*queuepb.SnapshotRecord, change func(*queuepb.AliasRecord)) bool {
	for _, r := range all {
		if a := r.GetAlias(); a != nil {
			change(a)
			return true
		}
	}
	return false
}

// scramble changes a field of a record: to what it is in another, if that has it, or
// to a number nearby.
func scramble(random *rand.Rand, record, other protoreflect.Message) {
	var fields []protoreflect.FieldDescriptor
	record.Range(func(f protoreflect.FieldDescriptor, _ protoreflect.Value) bool {
		fields = append(fields, f)
		return true
	})
	if len(fields) == 0 {
		return
	}
	f := fields[random.IntN(len(fields))]
	value := record.Get(f)
	same := other.Descriptor() == record.Descriptor() && other.Has(f)
	switch {
	case f.IsList() && f.Message() != nil:
		if n := value.List().Len(); n > 0 {
			scramble(random, value.List().Get(random.IntN(n)).Message(), record)
		}
	case f.Message() != nil && same:
		scramble(random, value.Message(), other.Get(f).Message())
	case f.Message() != nil:
		scramble(random, value.Message(), record)
	case same:
		record.Set(f, other.Get(f))
	case f.Kind() == protoreflect.Uint64Kind:
		record.Set(f, protoreflect.ValueOfUint64(value.Uint()+uint64(random.IntN(5))-2))
	case f.Kind() == protoreflect.Uint32Kind:
		record.Set(f, protoreflect.ValueOfUint32(uint32(value.Uint())+uint32(random.IntN(5))-2))
	case f.Kind() == protoreflect.Int64Kind:
		record.Set(f, protoreflect.ValueOfInt64(value.Int()+int64(random.IntN(5))-2))
	case f.Kind() == protoreflect.BoolKind:
		record.Set(f, protoreflect.ValueOfBool(false))
	}
}

// headerBytes is the length of a snapshot's header, which is not compressed.
func headerBytes(t testing.TB, snapshot []byte) int {
	length, n := binary.Uvarint(snapshot)
	if n <= 0 || int(length) > len(snapshot)-n {
		t.Fatal("no header")
	}
	return n + int(length)
}

// inflated returns a snapshot with its records uncompressed.
func inflated(t testing.TB, snapshot []byte) []byte {
	n := headerBytes(t, snapshot)
	records, err := io.ReadAll(flate.NewReader(bytes.NewReader(snapshot[n:])))
	if err != nil {
		t.Fatal(err)
	}
	return append(slices.Clone(snapshot[:n]), records...)
}

// compressed undoes inflated. A header that cannot be found is left as it is.
func compressed(t testing.TB, snapshot []byte) []byte {
	length, n := binary.Uvarint(snapshot)
	if n <= 0 || length > uint64(len(snapshot)-n) {
		return snapshot
	}
	header := n + int(length)
	var b bytes.Buffer
	b.Write(snapshot[:header])
	w, err := flate.NewWriter(&b, flate.NoCompression)
	if err == nil {
		_, err = w.Write(snapshot[header:])
	}
	if err = errors.Join(err, w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// touch reads and drives everything, to see it panic.
func touch(s *fsm.State) {
	for m := range s.Messages(mail.QueueID{}) {
		s.Message(m.ID)
		m.State()
	}
	for _, l := range s.Leases() {
		s.Apply(s.Applied()+1, fsm.Command{Action: fsm.ExpireLeases{Token: l.Token, Renewal: l.Renewal}})
	}
	for _, d := range s.Domains() {
		s.Apply(s.Applied()+1, fsm.Command{Action: fsm.GrantLeases{Holder: "n", Domain: d.Name, Messages: slices.Collect(s.Due(d.Name))}})
	}
	s.Apply(s.Applied()+1, fsm.Command{Action: fsm.Tick{Elapsed: 60_000}})
}

func TestSnapshotLimits(t *testing.T) {
	long := binary.AppendUvarint(nil, 1<<40)
	if _, err := fsm.Decode(bytes.NewReader(long)); err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a record of a tebibyte: %v", err)
	}
	header, _ := proto.Marshal(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Header{Header: &queuepb.SnapshotHeader{Version: 8}}})
	if _, err := fsm.Decode(bytes.NewReader(append([]byte{byte(len(header))}, header...))); err == nil || !strings.Contains(err.Error(), "version 8") {
		t.Errorf("version 8: %v", err)
	}
	if err := busy(t).Encode(fullDisk{}); err == nil {
		t.Error("a full disk is not noticed")
	}
}

type fullDisk struct{}

func (fullDisk) Write([]byte) (int, error) { return 0, errors.New("no space") }

func FuzzDecode(f *testing.F) {
	f.Add(encoded(f, busy(f)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := fsm.Decode(bytes.NewReader(b)); err == nil {
			touch(s)
		}
	})
}

func FuzzDecodeCommand(f *testing.F) {
	for _, a := range everyAction() {
		b, _ := fsm.EncodeCommand(fsm.Command{Node: "n1", Action: a})
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := fsm.DecodeCommand(b)
		if err != nil {
			return
		}
		s := fsm.New()
		s.Apply(1, fsm.Command{Action: fsm.PutDomain{Domain: fsm.Domain{Name: "a.test", MX: true}}})
		s.Apply(2, c)
		s.Apply(3, c)
		if err := s.Check(); err != nil {
			t.Fatal(err)
		}
		again, err := fsm.EncodeCommand(c)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := fsm.DecodeCommand(again); err != nil || !reflect.DeepEqual(c, d) {
			t.Fatalf("got %+v, %v, want %+v", d, err, c)
		}
	})
}

// eachMessage calls each for m and every message in it, with a function that
// sets its unknown fields.
func eachMessage(m protoreflect.Message, each func(set func([]byte))) {
	each(func(b []byte) { m.SetUnknown(b) })
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				eachMessage(v.List().Get(i).Message(), each)
			}
		case f.Message() != nil:
			eachMessage(v.Message(), each)
		}
		return true
	})
}
