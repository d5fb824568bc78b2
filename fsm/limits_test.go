package fsm_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// relayFor returns a State with one relay domain.
func relayFor(t *testing.T, d mail.Domain) *fsm.State {
	t.Helper()
	s := fsm.New()
	if r, _ := s.Apply(1, fsm.Command{Action: fsm.PutDomain{Domain: fsm.Domain{Name: d, MX: true}}}); r.Verdict != fsm.Done {
		t.Fatal(r)
	}
	return s
}

func apply(s *fsm.State, a fsm.Action) fsm.Result {
	r, _ := s.Apply(s.Applied()+1, fsm.Command{Node: "n1", Action: a})
	return r
}

// acceptOf is a sound Accept with so many recipients.
func acceptOf(recipients int) fsm.Accept {
	a := fsm.Accept{Body: mail.BodyRef{ID: mail.QueueID{1}, Size: 1}}
	for i := range recipients {
		path, _ := mail.ParseForwardPath(fmt.Sprintf("u%d@a.test", i), false)
		a.Envelope.Recipients = append(a.Envelope.Recipients, mail.Recipient{Path: path, Domain: "a.test"})
	}
	return a
}

func TestAcceptLimits(t *testing.T) {
	for what, test := range map[string]struct {
		change func(*fsm.Accept)
		want   fsm.Verdict
	}{
		"sound":                   {func(*fsm.Accept) {}, fsm.Done},
		"1,000 recipients":        {func(a *fsm.Accept) { *a = acceptOf(1000) }, fsm.Done},
		"1,001 recipients":        {func(a *fsm.Accept) { *a = acceptOf(1001) }, fsm.Invalid},
		"no recipients":           {func(a *fsm.Accept) { a.Envelope.Recipients = nil }, fsm.Invalid},
		"no id":                   {func(a *fsm.Accept) { a.Body.ID = mail.QueueID{} }, fsm.Invalid},
		"negative size":           {func(a *fsm.Accept) { a.Body.Size = -1 }, fsm.Invalid},
		"2^62 octets":             {func(a *fsm.Accept) { a.Body.Size = 1 << 62 }, fsm.Invalid},
		"null forward-path":       {func(a *fsm.Accept) { a.Envelope.Recipients[0].Path = mail.ForwardPath{} }, fsm.Invalid},
		"recipient of no domain":  {func(a *fsm.Accept) { a.Envelope.Recipients[0].Domain = "" }, fsm.Invalid},
		"recipient of another":    {func(a *fsm.Accept) { a.Envelope.Recipients[1].Domain = "b.test" }, fsm.Refused},
		"duplicate forward-path":  {func(a *fsm.Accept) { a.Envelope.Recipients[1] = a.Envelope.Recipients[0] }, fsm.Invalid},
		"unknown RET":             {func(a *fsm.Accept) { a.Envelope.Return = 3 }, fsm.Invalid},
		"unknown NOTIFY":          {func(a *fsm.Accept) { a.Envelope.Recipients[0].Notify = 16 }, fsm.Invalid},
		"broken UTF-8 in HELO":    {func(a *fsm.Accept) { a.Envelope.Trace.Hello = "\xff" }, fsm.Invalid},
		"broken UTF-8 in a path":  {func(a *fsm.Accept) { a.Envelope.Recipients[0].Path.Local = "\xff" }, fsm.Invalid},
		"a protocol of 256 bytes": {func(a *fsm.Accept) { a.Envelope.Trace.Protocol = strings.Repeat("x", 256) }, fsm.Invalid},
		"an envelope of 65 KiB":   {func(a *fsm.Accept) { a.Envelope.EnvelopeID = strings.Repeat("x", 65<<10) }, fsm.Invalid},
	} {
		s := relayFor(t, "a.test")
		a := acceptOf(2)
		test.change(&a)
		if r := apply(s, a); r.Verdict != test.want {
			t.Errorf("%s: %s %s, want %s", what, r.Verdict, r.Text, test.want)
		}
		if known := s.Known(a.Body.ID); known != (test.want == fsm.Done) {
			t.Errorf("%s: known is %v", what, known)
		}
		if err := s.Check(); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestDomainLimits(t *testing.T) {
	one := []fsm.Target{{Host: "mail.a.test", Port: 25}}
	for what, test := range map[string]struct {
		domain fsm.Domain
		want   fsm.Verdict
	}{
		"by MX":              {fsm.Domain{Name: "a.test", MX: true}, fsm.Done},
		"by targets":         {fsm.Domain{Name: "a.test", Targets: one}, fsm.Done},
		"IPv6 target":        {fsm.Domain{Name: "a.test", Targets: []fsm.Target{{Host: "2001:db8::1", Port: 25}}}, fsm.Done},
		"neither":            {fsm.Domain{Name: "a.test"}, fsm.Invalid},
		"both":               {fsm.Domain{Name: "a.test", MX: true, Targets: one}, fsm.Invalid},
		"17 targets":         {fsm.Domain{Name: "a.test", Targets: slices.Repeat(one, 17)}, fsm.Invalid},
		"port 0":             {fsm.Domain{Name: "a.test", Targets: []fsm.Target{{Host: "x"}}}, fsm.Invalid},
		"no host":            {fsm.Domain{Name: "a.test", Targets: []fsm.Target{{Port: 25}}}, fsm.Invalid},
		"host with newline":  {fsm.Domain{Name: "a.test", Targets: []fsm.Target{{Host: "x\n", Port: 25}}}, fsm.Invalid},
		"host with brackets": {fsm.Domain{Name: "a.test", Targets: []fsm.Target{{Host: "[::1]", Port: 25}}}, fsm.Invalid},
		"no name":            {fsm.Domain{MX: true}, fsm.Invalid},
		"upper case":         {fsm.Domain{Name: "A.test", MX: true}, fsm.Invalid},
		"wildcard":           {fsm.Domain{Name: "*.test", MX: true}, fsm.Invalid},
	} {
		if r := apply(fsm.New(), fsm.PutDomain{Domain: test.domain}); r.Verdict != test.want {
			t.Errorf("%s: %s %s, want %s", what, r.Verdict, r.Text, test.want)
		}
	}
}

func TestSettingsLimits(t *testing.T) {
	const hour = 3_600_000
	for what, test := range map[string]struct {
		settings fsm.Settings
		want     fsm.Verdict
	}{
		"all defaults":                      {fsm.Settings{}, fsm.Done},
		"records outlive by an hour":        {fsm.Settings{FingerprintLife: hour, RecordLife: 2 * hour}, fsm.Done},
		"records outlive by less":           {fsm.Settings{FingerprintLife: hour, RecordLife: 2*hour - 1}, fsm.Invalid},
		"fingerprints for more than a day":  {fsm.Settings{FingerprintLife: 24*hour + 1, RecordLife: 48 * hour}, fsm.Invalid},
		"more than 100,000 fingerprints":    {fsm.Settings{FingerprintMax: 100_001}, fsm.Invalid},
		"negative number of fingerprints":   {fsm.Settings{FingerprintMax: -1}, fsm.Invalid},
		"negative doubt_wait":               {fsm.Settings{DoubtWait: -1}, fsm.Invalid},
		"doubt_wait of a month":             {fsm.Settings{DoubtWait: 720 * hour}, fsm.Invalid},
		"retry minimum above the maximum":   {fsm.Settings{RetryMin: 2 * hour, RetryMax: hour}, fsm.Invalid},
		"negative voters":                   {fsm.Settings{Voters: -1}, fsm.Invalid},
		"more voters than a cluster may be": {fsm.Settings{Voters: 65}, fsm.Invalid},
	} {
		s := fsm.New()
		r := apply(s, fsm.PutSettings{Settings: test.settings})
		if r.Verdict != test.want {
			t.Errorf("%s: %s %s, want %s", what, r.Verdict, r.Text, test.want)
		}
		want := fsm.DefaultSettings()
		if test.want == fsm.Done {
			want = test.settings.WithDefaults()
		}
		if s.Settings() != want {
			t.Errorf("%s: %+v, want %+v", what, s.Settings(), want)
		}
	}
}

// TestRepliesAreBounded: what a next hop says is hostile, and is kept.
func TestRepliesAreBounded(t *testing.T) {
	s := relayFor(t, "a.test")
	a := acceptOf(1)
	apply(s, a)
	apply(s, fsm.GrantLeases{Holder: "n1", Domain: "a.test", Messages: []mail.QueueID{a.Body.ID}})
	token := fsm.Token(s.Applied())
	apply(s, fsm.RecordOutcomes{Holder: "n1", Token: token, Messages: []fsm.MessageOutcomes{{ID: a.Body.ID, Recipients: []fsm.RecipientOutcome{{
		Outcome: fsm.Deferred, Tried: true,
		Reply: mail.Reply{Code: 4510, Enhanced: mail.EnhancedCode{4, -1, 7}, Text: "a\x1b[2J\r\nb\xff" + strings.Repeat("ü", 5000)},
	}}}}})
	m, _ := s.Message(a.Body.ID)
	got := m.Recipients[0].Reply
	if got.Code != 0 || got.Enhanced != (mail.EnhancedCode{4, 0, 7}) || len(got.Text) > 512 || !strings.HasPrefix(got.Text, "a?[2J??b?ü") {
		t.Errorf("kept %+v", got)
	}
	apply(s, fsm.ReportNextHop{Node: "n1", Domain: "a.test", Detail: strings.Repeat("x", 10_000)})
	if n := len(s.NextHop("a.test").Detail); n > 512 {
		t.Errorf("detail of %d bytes", n)
	}
	apply(s, fsm.Hold{ID: a.Body.ID, Reason: strings.Repeat("x", 10_000)})
	m, _ = s.Message(a.Body.ID)
	if n := len(m.Recipients[0].Reason); n > 256 {
		t.Errorf("reason of %d bytes", n)
	}
}

// TestRetryWaits: doubled per attempt, up to the limit, for ever.
func TestRetryWaits(t *testing.T) {
	s := relayFor(t, "a.test")
	a := acceptOf(1)
	apply(s, a)
	for attempt := 1; attempt < 70; attempt++ {
		if r := apply(s, fsm.GrantLeases{Holder: "n1", Domain: "a.test", Messages: []mail.QueueID{a.Body.ID}}); len(r.Messages) != 1 {
			t.Fatalf("attempt %d is not granted", attempt)
		}
		apply(s, fsm.RecordOutcomes{Holder: "n1", Token: fsm.Token(s.Applied()), Messages: []fsm.MessageOutcomes{{
			ID: a.Body.ID, Recipients: []fsm.RecipientOutcome{{Outcome: fsm.Deferred, Tried: true}},
		}}})
		m, _ := s.Message(a.Body.ID)
		want := min(fsm.Millis(60_000)<<min(attempt-1, 20), 1_800_000)
		if wait := m.Parts[0].RetryAt - s.Now(); wait != want || m.Parts[0].Attempts != attempt {
			t.Fatalf("attempt %d of %d waits %d, want %d", m.Parts[0].Attempts, attempt, wait, want)
		}
		for s.Counts("a.test").Due == 0 {
			apply(s, fsm.Tick{Elapsed: 60_000})
		}
	}
}

// TestStartsAreBounded: those of the servers that started longest ago are
// forgotten first; a server that starts again is no new one.
func TestStartsAreBounded(t *testing.T) {
	s := fsm.New()
	for i := range 256 {
		apply(s, fsm.RecordStart{Server: fsm.ServerID(fmt.Sprintf("n/%03d", i)), Number: 1})
	}
	apply(s, fsm.RecordStart{Server: "n/000", Number: 2})
	if s.Start("n/000") != 2 || s.Start("n/001") != 1 {
		t.Fatal("forgotten too early")
	}
	apply(s, fsm.RecordStart{Server: "n/256", Number: 1})
	if s.Start("n/000") != 2 || s.Start("n/001") != 0 || s.Start("n/256") != 1 {
		t.Errorf("%d, %d, %d", s.Start("n/000"), s.Start("n/001"), s.Start("n/256"))
	}
	if n := len(maps.Collect(s.Starts())); n != 256 {
		t.Errorf("%d starts", n)
	}
}

// TestSnapshotsOfVersion1: as long as no start is recorded, older nodes can read
// what is written. Nothing is lost in either version.
func TestSnapshotsOfVersion1(t *testing.T) {
	s := relayFor(t, "a.test")
	apply(s, everyAction()[0]) // refused: b.test is no relay domain
	apply(s, fsm.PutDomain{Domain: fsm.Domain{Name: "b.test", MX: true}})
	apply(s, everyAction()[0])
	again := func() {
		t.Helper()
		before := encoded(t, s)
		restored, err := fsm.Decode(bytes.NewReader(before))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(encoded(t, restored), before) {
			t.Error("what was read is not what was written")
		}
		got, want := slices.Collect(restored.Messages(mail.QueueID{})), slices.Collect(s.Messages(mail.QueueID{}))
		if len(want) != 1 || !reflect.DeepEqual(got, want) {
			t.Errorf("\n got %+v\nwant %+v", got, want)
		}
		s = restored
	}
	version := func() uint32 {
		b := encoded(t, s)
		length, n := binary.Uvarint(b)
		var r queuepb.SnapshotRecord
		if err := proto.Unmarshal(b[n:n+int(length)], &r); err != nil {
			t.Fatal(err)
		}
		return r.GetHeader().GetVersion()
	}
	if got := version(); got != 1 {
		t.Errorf("version %d without starts", got)
	}
	again()
	apply(s, fsm.RecordStart{Server: "n1/1", Number: 1})
	if got := version(); got != 3 {
		t.Errorf("version %d with starts", got)
	}
	again()
}

// TestTicksAreBounded: no clock jump ages anything by more than a tick.
func TestTicksAreBounded(t *testing.T) {
	s := fsm.New()
	for elapsed, want := range map[fsm.Millis]fsm.Millis{0: 0, 1: 1, 60_000: 60_000, 60_001: 60_000, 1 << 62: 60_000, -1: 0} {
		before := s.Now()
		apply(s, fsm.Tick{Elapsed: elapsed})
		if got := s.Now() - before; got != want {
			t.Errorf("a tick of %d is one of %d, want %d", elapsed, got, want)
		}
	}
}

// TestAnEntryTwiceIsABrokenShell: it would part this node from the others.
func TestAnEntryTwiceIsABrokenShell(t *testing.T) {
	s := relayFor(t, "a.test")
	defer func() {
		if recover() == nil {
			t.Error("entry 1 is applied twice")
		}
	}()
	s.Apply(1, fsm.Command{Action: fsm.Settle{}})
}
