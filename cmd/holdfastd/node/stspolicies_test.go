package node

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/sts"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// oneQueue is a replicated queue without replication.
type oneQueue struct{ state *fsm.State }

func (q oneQueue) View() *fsm.State { return q.state }

func (q oneQueue) Do(_ context.Context, a fsm.Action) (fsm.Result, error) {
	r, _ := q.state.Apply(q.state.Applied()+1, fsm.Command{Node: "n1", Action: a})
	return r, nil
}

// TestSTSPoliciesAreShared: what one node fetched all have, and after a restart too.
func TestSTSPoliciesAreShared(t *testing.T) {
	const domain, other = mail.Domain("a.test"), mail.Domain("b.test")
	ctx := t.Context()
	q := oneQueue{fsm.New()}
	for d, mode := range map[mail.Domain]fsm.TLSMode{domain: fsm.TLSMTASTS, other: fsm.TLSRequire} {
		if r, _ := q.Do(ctx, fsm.PutDomain{Domain: fsm.Domain{Name: d, MX: true, TLS: fsm.TLSPolicy{Mode: mode}}}); r.Verdict != fsm.Done {
			t.Fatal(r)
		}
	}
	at := time.UnixMilli(1_800_000_000_123)
	entry := func(id string, after time.Duration) sts.Entry {
		return sts.Entry{ID: id, Text: []byte("policy " + id), Fetched: at.Add(after)}
	}
	one, two := &stsPolicies{member: q}, &stsPolicies{member: q}
	is := func(p *stsPolicies, d mail.Domain, want string) {
		t.Helper()
		got, ok := p.Get(ctx, d)
		if ok != (want != "") || got.ID != want || ok && string(got.Text) != "policy "+want {
			t.Errorf("%q of %s, want %q", got.ID, d, want)
		}
	}
	is(one, domain, "")
	if err := one.Put(ctx, domain, entry("1", 0)); err != nil {
		t.Fatal(err)
	}
	is(one, domain, "1")
	is(two, domain, "1")
	if got, _ := two.Get(ctx, domain); !got.Fetched.Equal(at) {
		t.Errorf("fetched at %v, want %v", got.Fetched, at)
	}
	if err := two.Put(ctx, domain, entry("2", time.Hour)); err != nil {
		t.Fatal(err)
	}
	is(one, domain, "2")
	is(&stsPolicies{member: q}, domain, "2") // started again

	// What cannot be kept for all a node has for itself.
	long := sts.Entry{ID: "3", Text: []byte(strings.Repeat("x", fsm.STSPolicyBytesMax+1)), Fetched: at.Add(2 * time.Hour)}
	if err := one.Put(ctx, domain, long); err != nil {
		t.Error(err)
	}
	if got, _ := one.Get(ctx, domain); got.ID != "3" {
		t.Errorf("%q, want the long one", got.ID)
	}
	is(two, domain, "2")
	if err := one.Put(ctx, other, entry("4", 0)); err == nil {
		t.Error("a policy is kept for a domain that goes by none")
	}
	is(one, other, "4")
	is(two, other, "")
}
