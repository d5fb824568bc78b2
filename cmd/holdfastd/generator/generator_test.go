package generator

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A queue takes a second for each message, and refuses all after the first few if
// it is told to.
type queue struct {
	takes int // 0: all

	mu      sync.Mutex
	bodies  map[mail.Digest]int
	settled map[mail.QueueID]bool
	last    byte
	domains map[mail.Domain]int
}

var errFull = errors.New("full")

func (q *queue) Submit(ctx context.Context, e mail.Envelope, b *mail.Body) (mail.QueueID, error) {
	time.Sleep(time.Second)
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.takes > 0 && len(q.bodies) == q.takes {
		return mail.QueueID{}, errFull
	}
	if q.bodies == nil {
		q.bodies, q.settled, q.domains = map[mail.Digest]int{}, map[mail.QueueID]bool{}, map[mail.Domain]int{}
	}
	q.bodies[b.Digest()]++
	q.domains[e.Recipients[0].Domain]++
	q.last++
	return mail.QueueID{q.last}, nil
}

func (q *queue) Settle(id mail.QueueID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.settled[id] = true
}

func TestGenerate(t *testing.T) {
	for _, c := range []struct {
		name             string
		order            Order
		takes            int
		accepted, failed int
		elapsed          time.Duration
	}{
		{"ends with the time, what is under way counts",
			Order{Size: 100, Publishers: 3, Duration: 2500 * time.Millisecond, OctetsMax: 1 << 20}, 0, 9, 0, 3 * time.Second},
		{"ends with the octets",
			Order{Size: 100, Publishers: 3, Duration: time.Hour, OctetsMax: 750}, 0, 7, 0, 3 * time.Second},
		{"a failure ends its publisher",
			Order{Size: 100, Publishers: 2, Duration: time.Hour, OctetsMax: 1 << 20}, 3, 3, 2, 3 * time.Second},
		{"nobody publishes",
			Order{Size: 100, Duration: time.Second, OctetsMax: 1 << 20}, 0, 0, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				q := &queue{takes: c.takes}
				c.order.Recipient = "user@Example.test"
				r, err := Generate(t.Context(), q, nil, c.order)
				if err != nil {
					t.Fatal(err)
				}
				if r.Accepted != c.accepted || r.Failed != c.failed || r.Elapsed != c.elapsed || len(r.LatenciesUS) != c.accepted {
					t.Errorf("%+v, want %d accepted, %d failed, in %v", r, c.accepted, c.failed, c.elapsed)
				}
				if r.Octets != int64(100*c.accepted) || c.failed > 0 && r.FirstFailure != errFull.Error() {
					t.Errorf("%+v", r)
				}
				if len(q.bodies) != c.accepted || len(q.settled) != c.accepted || q.domains["example.test"] != c.accepted {
					t.Errorf("%d payloads differ, %d are settled, domains %v, want %d", len(q.bodies), len(q.settled), q.domains, c.accepted)
				}
			})
		})
	}
}

func TestServe(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(ctx, l, &queue{}, nil, slog.New(slog.DiscardHandler))
	}()
	ask := func(text string) (r Result, err error) {
		conn, err := net.Dial("unix", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, text); err != nil {
			t.Fatal(err)
		}
		err = json.NewDecoder(conn).Decode(&r)
		return r, err
	}
	// What makes no sense gets no answer, and harms nobody else.
	for _, bad := range []string{
		"}\n",
		`{"size":15,"publishers":1,"duration_ns":1,"octets_max":1,"recipient":"user@example.test"}`,
		`{"size":16,"publishers":1001,"duration_ns":1,"octets_max":1,"recipient":"user@example.test"}`,
		`{"size":16,"publishers":1,"octets_max":1,"recipient":"user@example.test"}`,
		`{"size":16,"publishers":1,"duration_ns":1,"octets_max":1,"recipient":"user"}`,
	} {
		if r, err := ask(bad); !errors.Is(err, io.EOF) {
			t.Errorf("%s: %+v, %v", bad, r, err)
		}
	}
	r, err := ask(`{"size":16,"publishers":2,"duration_ns":3600000000000,"octets_max":32,"recipient":"user@example.test"}`)
	if err != nil || r.Accepted != 2 || r.Octets != 32 {
		t.Errorf("%+v, %v", r, err)
	}
	stop()
	<-done
}
