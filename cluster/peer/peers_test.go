package peer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func TestProposeErrors(t *testing.T) {
	ref, _ := body(1, 10)
	for _, tt := range []struct {
		name    string
		propose func(ctx context.Context, w *world) error
		want    error
	}{
		{"leader refuses", func(context.Context, *world) error { return fmt.Errorf("not leading: %w", ErrNotAppended) }, ErrNotAppended},
		{"leader refuses and names another", func(context.Context, *world) error {
			return &NotAppendedError{Reason: "not leading", Leader: "c/9"}
		}, ErrNotAppended},
		{"too large", func(context.Context, *world) error { return fmt.Errorf("entry: %w", ErrTooLarge) }, ErrTooLarge},
		{"leader cannot tell", func(context.Context, *world) error { return ErrOutcomeUnknown }, ErrOutcomeUnknown},
		{"an error of no kind", func(context.Context, *world) error { return errors.New("leadership lost") }, ErrOutcomeUnknown},
		{"deadline", func(ctx context.Context, _ *world) error { <-ctx.Done(); return ctx.Err() }, ErrOutcomeUnknown},
		{"connection breaks", func(ctx context.Context, w *world) error {
			w.net.breakConns("b")
			<-ctx.Done()
			return ctx.Err()
		}, ErrOutcomeUnknown},
		// The server's own word for a refusal does not count once the caller has
		// gone: nobody reads it. Both sides reach the deadline in the same moment.
		{"refusal after the deadline", func(ctx context.Context, _ *world) error {
			<-ctx.Done()
			time.Sleep(time.Millisecond)
			return ErrNotAppended
		}, ErrOutcomeUnknown},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				var calls int
				at := &backend{propose: func(ctx context.Context, command []byte, body *mail.BodyRef) ([]byte, error) {
					calls++
					if string(command) != "command" || body == nil || *body != ref {
						t.Errorf("proposed %q with body %v", command, body)
					}
					return nil, tt.propose(ctx, w)
				}}
				a, b := w.start("a", new(backend)), w.start("b", at)
				defer b.close()
				defer a.close()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				_, err := a.propose(ctx, "b", []byte("command"), &ref)
				if !errors.Is(err, tt.want) {
					t.Fatalf("%v, want %v", err, tt.want)
				}
				certain, unknown := errors.Is(err, ErrNotAppended), errors.Is(err, ErrOutcomeUnknown)
				if certain == unknown {
					t.Fatalf("%v is not exactly one of ErrNotAppended and ErrOutcomeUnknown", err)
				}
				var named *NotAppendedError
				if tt.name == "leader refuses and names another" && (!errors.As(err, &named) || named.Leader != "c/9") {
					t.Errorf("%v does not name the leader", err)
				}
				synctest.Wait()
				if calls != 1 {
					t.Errorf("the command was proposed %d times, want once", calls)
				}
			})
		})
	}
}

func TestProposeCertainties(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		at := &backend{propose: func(_ context.Context, command []byte, body *mail.BodyRef) ([]byte, error) {
			if body != nil {
				t.Errorf("body %v out of nothing", body)
			}
			return append([]byte("result of "), command...), nil
		}}
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer a.close()
		got, err := a.propose(t.Context(), "b", []byte("c"), nil)
		if err != nil || string(got) != "result of c" {
			t.Fatalf("%q, %v", got, err)
		}
		_, err = a.propose(t.Context(), "b", make([]byte, ProposeBytesMax+1), nil)
		if !errors.Is(err, ErrTooLarge) || !errors.Is(err, ErrNotAppended) {
			t.Errorf("too large: %v", err)
		}
		for _, dead := range []string{"dead", "nowhere"} {
			if _, err := a.propose(t.Context(), dead, []byte("c"), nil); !errors.Is(err, ErrNotAppended) {
				t.Errorf("%s: %v, want ErrNotAppended: nothing was sent", dead, err)
			}
		}
		b.close()
		synctest.Wait()
		if _, err := a.propose(t.Context(), "b", []byte("c"), nil); !errors.Is(err, ErrNotAppended) {
			t.Errorf("leader gone before the call: %v, want ErrNotAppended", err)
		}
		b = w.start("b", at)
		defer b.close()
		time.Sleep(2 * reconnectMax) // The bubble's clock.
		if _, err := a.propose(t.Context(), "b", []byte("c"), nil); err != nil {
			t.Errorf("leader back: %v", err)
		}
		_ = a.peers.Close()
		if _, err := a.propose(t.Context(), "b", []byte("c"), nil); !errors.Is(err, ErrNotAppended) || !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: %v", err)
		}
		if err := a.push(t.Context(), mail.BodyRef{}, new(mail.Body), "b"); !errors.Is(err, ErrClosed) {
			t.Errorf("push after Close: %v", err)
		}
	})
}

func TestPullAndHealth(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		ref, _ := body(1, 1)
		var pullErr error
		asked := PullRequest{
			Holder: "a", Domain: "example.org", Max: 3, Connections: 5,
			Seen: Feedback{Token: 1 << 40, Answered: 7, Deferred: 1, Lost: true, Mean: 1500 * time.Microsecond},
		}
		at := &backend{pull: func(_ context.Context, r PullRequest) (PullReply, error) {
			if r != asked {
				t.Errorf("pull %+v, want %+v", r, asked)
			}
			return PullReply{Token: 17, Messages: []mail.QueueID{ref.ID}, Connections: r.Connections - 3}, pullErr
		}}
		a, b := w.start("a", new(backend)), w.start("b", at)
		defer b.close()
		defer a.close()
		got, err := a.peers.Pull(t.Context(), "b", asked)
		if err != nil || got.Token != 17 || len(got.Messages) != 1 || got.Messages[0] != ref.ID || got.Connections != 2 {
			t.Errorf("%+v, %v", got, err)
		}
		// Only what was seen, as a node's last connection has it; and a leader that does
		// not say how many there may be.
		asked = PullRequest{Holder: "a", Domain: "example.org", Seen: Feedback{Token: 2, Deferred: 1}}
		if got, err := a.peers.Pull(t.Context(), "b", asked); err != nil || got.Connections != -1 {
			t.Errorf("%+v, %v", got, err)
		}
		// The queue has names that are no domains: the backend looks them up.
		asked = PullRequest{Holder: "a", Domain: "outbound@example.org", Max: 3, Connections: 3}
		if got, err := a.peers.Pull(t.Context(), "b", asked); err != nil || got.Token != 17 {
			t.Errorf("a lease of reports: %+v, %v", got, err)
		}
		asked = PullRequest{Holder: "a", Domain: "example.org", Max: 3}
		pullErr = errors.New("not leading")
		if _, err := a.peers.Pull(t.Context(), "b", PullRequest{Holder: "a", Domain: "example.org", Max: 3}); err == nil {
			t.Error("a refused pull succeeds")
		}
		pullErr = nil
		for _, bad := range []PullRequest{
			{Holder: "c", Domain: "example.org", Max: 3}, // A lease for somebody else.
			{Holder: "a", Domain: "", Max: 3},
			{Holder: "a", Domain: strings.Repeat("x", domainBytesMax+1), Max: 3},
			{Holder: "a", Domain: "example.org", Max: 3, Seen: Feedback{Mean: 2 * time.Hour}},
		} {
			if got, err := a.peers.Pull(t.Context(), "b", bad); err == nil {
				t.Errorf("pull %+v: %+v", bad, got)
			}
		}
		for _, q := range []Inquiry{{}, {Brief: true}, {ServerID: "a/1"}} {
			want := at.Health(q)
			if !want.SeenOK {
				want.Seen = Seen{}
			}
			if h, err := a.peers.Health(t.Context(), "b", q); err != nil || h != want {
				t.Errorf("%+v: %+v, %v", q, h, err)
			}
		}
		if h, err := a.peers.Health(t.Context(), "b", Inquiry{ServerID: "b/1"}); err == nil {
			t.Errorf("told what was seen of somebody else: %+v", h)
		}
		if d, err := a.peers.Digest(t.Context(), "b", testDigest.Index); err != nil || d != testDigest {
			t.Errorf("%+v, %v", d, err)
		}
		if d, err := a.peers.Digest(t.Context(), "b", testDigest.Index-1); !errors.Is(err, ErrPassed) {
			t.Errorf("of a past entry: %+v, %v", d, err)
		}
		if d, err := a.peers.Digest(t.Context(), "b", testDigest.Index+1); err == nil || errors.Is(err, ErrPassed) {
			t.Errorf("of one that never comes: %+v, %v", d, err)
		}
		if !a.peers.Ready("b") || a.peers.Ready("dead") {
			t.Error("Ready does not tell who is there")
		}
	})
}
