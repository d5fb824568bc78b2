package admin

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// TestListQueueFilters lists by domain and state: both must fit one recipient.
func TestListQueueFilters(t *testing.T) {
	c := newFakeCluster()
	c.domain(t, "example.test")
	c.domain(t, "example.org")
	c.accept(t, 1, "a@example.test")
	c.accept(t, 2, "a@example.org")
	c.accept(t, 3, "a@example.test", "a@example.org")
	c.accept(t, 4, "a@example.test")
	c.apply(t, "mx1", fsm.Hold{ID: id(2), Reason: "test"})
	c.apply(t, "mx1", fsm.Remove{ID: id(4)})
	// Of message 3 one recipient is held, by the primary, and one is queued.
	c.apply(t, "mx2", fsm.GrantLeases{Holder: "mx2", Domain: "example.org", Messages: []mail.QueueID{id(3)}})
	c.apply(t, "mx2", fsm.RecordOutcomes{Holder: "mx2", Token: fsm.Token(c.index), Messages: []fsm.MessageOutcomes{{
		ID: id(3), Recipients: []fsm.RecipientOutcome{{Recipient: 1, Outcome: fsm.Failed, Tried: true,
			Reply: mail.Reply{Code: 550, Enhanced: mail.EnhancedCode{5, 1, 1}, Text: "no \xff such user"}}},
	}}})
	s := NewService(c, slog.New(slog.DiscardHandler))
	for _, test := range []struct {
		domain string
		state  fsm.RecipientState
		want   []byte
	}{
		{"", 0, []byte{1, 2, 3}},
		{"example.test", 0, []byte{1, 3}},
		{"Example.ORG", 0, []byte{2, 3}},
		{"example.net", 0, nil},
		{"", fsm.RecipientQueued, []byte{1, 3}},
		{"", fsm.RecipientHeld, []byte{2, 3}},
		{"example.org", fsm.RecipientQueued, nil},
		{"example.org", fsm.RecipientHeld, []byte{2, 3}},
		{"", fsm.RecipientRemoved, []byte{4}},
		{"", fsm.RecipientDelivered, nil},
	} {
		r, err := s.ListQueue(t.Context(), &adminpb.ListQueueRequest{Domain: test.domain, State: recipientState(test.state)})
		if err != nil {
			t.Fatal(err)
		}
		if got := listed(r); !slices.Equal(got, test.want) {
			t.Errorf("domain %q, state %v: %v, want %v", test.domain, test.state, got, test.want)
		}
	}
	r, err := s.ListQueue(t.Context(), &adminpb.ListQueueRequest{Domain: "example.test"})
	if err != nil {
		t.Fatal(err)
	}
	third := r.GetMessages()[1]
	if third.GetRecipients() != 2 || third.GetQueued() != 1 || third.GetHeld() != 1 || third.GetAttempts() != 1 ||
		!strings.HasPrefix(third.GetLastReply(), "550 5.1.1 no ") || strings.Join(third.GetDomains(), " ") != "example.test example.org" {
		t.Errorf("summary %v", third)
	}
}

func listed(r *adminpb.ListQueueReply) []byte {
	var ns []byte
	for _, m := range r.GetMessages() {
		got, err := mail.ParseQueueID(m.GetQueueId())
		if err != nil {
			panic(err)
		}
		ns = append(ns, got[15])
	}
	return ns
}

// TestListQueuePages holds that pages of any size, put together, are the queue:
// each message once.
func TestListQueuePages(t *testing.T) {
	c := newFakeCluster()
	c.domain(t, "example.test")
	var all []byte
	for n := byte(1); n <= 20; n++ {
		c.accept(t, n, fmt.Sprintf("a%d@example.test", n))
		all = append(all, n)
	}
	s := NewService(c, slog.New(slog.DiscardHandler))
	for _, size := range []int32{1, 3, 10, 19, 20, 21, 1000, 0} {
		var got []byte
		r := &adminpb.ListQueueRequest{PageSize: size}
		for pages := 0; ; pages++ {
			page, err := s.ListQueue(t.Context(), r)
			if err != nil {
				t.Fatal(err)
			}
			if size > 0 && len(page.GetMessages()) > int(size) || pages > 20 {
				t.Fatalf("page %d of %d has %d messages", pages, size, len(page.GetMessages()))
			}
			got = append(got, listed(page)...)
			if r.PageToken = page.GetNextPageToken(); r.PageToken == "" {
				break
			}
		}
		if !slices.Equal(got, all) {
			t.Errorf("pages of %d: %v", size, got)
		}
	}
	last := mail.QueueID(slices.Repeat([]byte{0xff}, 16))
	page, err := s.ListQueue(t.Context(), &adminpb.ListQueueRequest{PageToken: last.String()})
	if err != nil || len(page.GetMessages()) != 0 || page.GetNextPageToken() != "" {
		t.Errorf("behind the last id: %v, %v", page, err)
	}
}

// TestListQueueIsBounded holds that a filter that nothing fits costs one bounded
// look, and that the next page goes on behind it.
func TestListQueueIsBounded(t *testing.T) {
	c := newFakeCluster()
	c.domain(t, "example.test")
	c.domain(t, "example.org")
	c.status.Quorum = true
	for i := range scanMax + 1 {
		path, err := mail.ParseForwardPath("a@example.test", false)
		if err != nil {
			t.Fatal(err)
		}
		domain := mail.Domain("example.test")
		if i == scanMax {
			domain = "example.org"
		}
		e := mail.Envelope{Recipients: []mail.Recipient{{Path: path, Domain: domain}}}
		body := mail.NewBody([]byte(fmt.Sprint(i)))
		c.apply(t, "mx1", fsm.Accept{Envelope: e, Body: body.Ref(mail.MintQueueID(uint64(i+1), [10]byte{}))})
	}
	s := NewService(c, slog.New(slog.DiscardHandler))
	r := &adminpb.ListQueueRequest{Domain: "example.org"}
	first, err := s.ListQueue(t.Context(), r)
	if err != nil || len(first.GetMessages()) != 0 || first.GetNextPageToken() == "" {
		t.Fatalf("first page: %d messages, next %q, %v", len(first.GetMessages()), first.GetNextPageToken(), err)
	}
	r.PageToken = first.GetNextPageToken()
	second, err := s.ListQueue(t.Context(), r)
	if err != nil || len(second.GetMessages()) != 1 || second.GetNextPageToken() != "" {
		t.Errorf("second page: %v, %v", second, err)
	}

	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.ListQueue(gone, &adminpb.ListQueueRequest{}); status.Code(err) != codes.Canceled {
		t.Errorf("a client that has gone gets %v", err)
	}
}

func TestShowMessage(t *testing.T) {
	c := newFakeCluster()
	c.domain(t, "example.test")
	m := c.accept(t, 1, "a@example.test")
	// The same message once more, under another id, is a repeat.
	e, _ := c.state.Message(m)
	repeat := mail.NewBody([]byte{1}).Ref(id(2))
	c.mu.Lock()
	if r := c.applyLocked("mx2", fsm.Accept{Envelope: e.Envelope, Body: repeat}); r.Verdict != fsm.Repeat {
		t.Fatalf("verdict %d", r.Verdict)
	}
	c.mu.Unlock()
	s := NewService(c, slog.New(slog.DiscardHandler))
	r, err := s.ShowMessage(t.Context(), &adminpb.ShowMessageRequest{QueueId: id(2).String()})
	if err != nil {
		t.Fatal(err)
	}
	got := r.GetMessage()
	if got.GetQueueId() != m.String() || strings.Join(got.GetAliases(), " ") != id(2).String() {
		t.Errorf("the id of the repeat shows %s with repeats %v", got.GetQueueId(), got.GetAliases())
	}
	if got.GetFrom() != "sender@example.com" || got.GetSize() != 1 || got.GetSha256() != e.Body.Digest.String() || got.GetRet() != "HDRS" ||
		got.GetEnvelopeId() != "e1" || !got.GetEightBit() || got.GetClient() != "198.51.100.7" || got.GetReceivedUnix() != 1_780_000_000 ||
		got.GetSettled() || got.GetFinished() || got.GetNode() != "mx1" {
		t.Errorf("message %v", got)
	}
	to := got.GetRecipients()[0]
	if to.GetPath() != "a@example.test" || to.GetState() != adminpb.RecipientState_RECIPIENT_STATE_QUEUED || strings.Join(to.GetNotify(), ",") != "SUCCESS,DELAY" {
		t.Errorf("recipient %v", to)
	}
	waiting := func() string {
		r, err := s.ShowMessage(t.Context(), &adminpb.ShowMessageRequest{QueueId: m.String()})
		if err != nil {
			t.Fatal(err)
		}
		return r.GetMessage().GetParts()[0].GetWaiting()
	}
	if w := waiting(); w != "its turn" {
		t.Errorf("queued: waits for %q", w)
	}
	c.apply(t, "mx2", fsm.GrantLeases{Holder: "mx2", Domain: "example.test", Messages: []mail.QueueID{m}})
	c.apply(t, "mx2", fsm.RecordOutcomes{Holder: "mx2", Token: fsm.Token(c.index), Messages: []fsm.MessageOutcomes{{
		ID: m, Recipients: []fsm.RecipientOutcome{{Outcome: fsm.Deferred, Tried: true, Reply: mail.Reply{Code: 451, Text: "later"}}},
	}}})
	if w := waiting(); !strings.HasPrefix(w, "a retry in ") {
		t.Errorf("deferred: waits for %q", w)
	}
	for range 3 {
		c.apply(t, "mx1", fsm.FlushDomain{Name: "example.test"})
		if w := waiting(); w != "its turn" {
			t.Errorf("flushed: waits for %q", w)
		}
		c.apply(t, "mx2", fsm.GrantLeases{Holder: "mx2", Domain: "example.test", Messages: []mail.QueueID{m}})
		c.apply(t, "mx2", fsm.RecordOutcomes{Holder: "mx2", Token: fsm.Token(c.index), Messages: []fsm.MessageOutcomes{{
			ID: m, Recipients: []fsm.RecipientOutcome{{Outcome: fsm.Deferred, Tried: true, Reply: mail.Reply{Code: 451, Text: "later"}}},
		}}})
	}
	c.apply(t, "mx1", fsm.FlushDomain{Name: "example.test"})
	if w := waiting(); !strings.HasPrefix(w, "its turn in the slow lane") {
		t.Errorf("put off four times: waits for %q", w)
	}
	c.apply(t, "mx2", fsm.ReportNextHop{Node: "mx2", Domain: "example.test", Detail: "refused"})
	c.apply(t, "mx3", fsm.ReportNextHop{Node: "mx3", Domain: "example.test", Detail: "refused"})
	if w := waiting(); w != "its next hop, which is down: refused" {
		t.Errorf("down: waits for %q", w)
	}
	c.apply(t, "mx3", fsm.ReportNextHop{Node: "mx3", Domain: "example.test", Refused: true, Detail: "421 later"})
	if w := waiting(); w != "its next hop, which answers and refuses every node: 421 later" {
		t.Errorf("refusing: waits for %q", w)
	}
	c.apply(t, "mx1", fsm.Hold{ID: m})
	if w := waiting(); w != "its release" {
		t.Errorf("held: waits for %q", w)
	}
	c.apply(t, "mx1", fsm.Remove{ID: m})
	if w := waiting(); w != "" {
		t.Errorf("removed: waits for %q", w)
	}
}
