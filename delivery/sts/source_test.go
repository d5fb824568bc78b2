package sts

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	record  = "v=STSv1; id=1;"
	enforce = "version: STSv1\r\nmode: enforce\r\nmx: mx.example.test\r\nmax_age: 604800\r\n"
)

var errServfail = errors.New("SERVFAIL")

// A world is a domain with a policy's host, and a clock.
type world struct {
	t      *testing.T
	public *deliverytest.Authority
	server *httptest.Server

	mu      sync.Mutex
	now     time.Time
	txt     []string
	txtErr  error
	asked   string
	serve   http.HandlerFunc
	fetches int
	cert    tls.Certificate
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, now: time.Now(), txt: []string{record}}
	w.public = deliverytest.NewAuthority(t, "public", w.now)
	w.cert = w.public.Issue(t, deliverytest.Certificate{Names: []string{"mta-sts.example.test"}})
	w.say("text/plain; charset=utf-8", enforce)
	w.server = httptest.NewUnstartedServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		serve := w.serve
		w.fetches++
		w.mu.Unlock()
		if r.Host != "mta-sts.example.test" || r.URL.Path != "/.well-known/mta-sts.txt" || r.Method != http.MethodGet {
			t.Errorf("%s %s at %s", r.Method, r.URL, r.Host)
		}
		serve(rw, r)
	}))
	w.server.TLS = &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		return &w.cert, nil
	}}
	w.server.Config.ErrorLog = log.New(io.Discard, "", 0)
	w.server.StartTLS()
	t.Cleanup(w.server.Close)
	return w
}

func (w *world) say(contentType, text string) {
	w.handle(func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", contentType)
		_, _ = rw.Write([]byte(text))
	})
}

func (w *world) handle(f http.HandlerFunc) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.serve = f
}

func (w *world) announce(err error, records ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.txt, w.txtErr = records, err
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func (w *world) fetched() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fetches
}

func (w *world) TXT(_ context.Context, name string) ([]string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = name
	return w.txt, w.txtErr
}

// source returns a Source of this world.
func (w *world) source(cache Cache) *Source {
	return New(Config{
		Resolver: w, Cache: cache,
		Client: &http.Client{Transport: &http.Transport{
			TLSClientConfig: &tls.Config{RootCAs: w.public.Pool()}, DisableKeepAlives: true,
			DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
				if address != "mta-sts.example.test:443" {
					w.t.Errorf("dialled %s", address)
				}
				return new(net.Dialer).DialContext(ctx, network, w.server.Listener.Addr().String())
			},
		}},
		Now: func() time.Time {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.now
		},
	})
}

func (w *world) policy(s *Source) tlspolicy.STS { return s.Policy(w.t.Context(), "example.test") }

func mustBe(t *testing.T, what string, got tlspolicy.STS, mode tlspolicy.STSMode) {
	t.Helper()
	if got.Status != tlspolicy.STSFound || got.Policy.Mode != mode {
		t.Errorf("%s: %+v", what, got)
	}
}

func mustFail(t *testing.T, what string, got tlspolicy.STS, result tlspolicy.Result) {
	t.Helper()
	if got.Status != tlspolicy.STSUnknown || got.Result != result || got.Err == nil {
		t.Errorf("%s: %+v, want %s", what, got, result)
	}
}

func TestPolicyIsFetchedOnce(t *testing.T) {
	w := newWorld(t)
	s := w.source(nil)
	for range 5 {
		mustBe(t, "enforce", w.policy(s), tlspolicy.STSModeEnforce)
	}
	if w.fetched() != 1 || w.asked != "_mta-sts.example.test" {
		t.Errorf("%d fetches, asked for %s", w.fetched(), w.asked)
	}
	// Another id means another policy.
	w.announce(nil, "v=STSv1; id=2;")
	w.say("text/plain", strings.Replace(enforce, "enforce", "testing", 1))
	mustBe(t, "testing", w.policy(s), tlspolicy.STSModeTesting)
	// It is fetched again in time.
	w.pass(23 * time.Hour)
	mustBe(t, "testing", w.policy(s), tlspolicy.STSModeTesting)
	if w.fetched() != 2 {
		t.Errorf("%d fetches", w.fetched())
	}
	w.pass(2 * time.Hour)
	mustBe(t, "testing", w.policy(s), tlspolicy.STSModeTesting)
	if w.fetched() != 3 {
		t.Errorf("%d fetches", w.fetched())
	}
}

func TestDomainWithoutPolicy(t *testing.T) {
	w := newWorld(t)
	s := w.source(nil)
	for _, records := range [][]string{nil, {"v=spf1 -all"}} {
		w.announce(nil, records...)
		if got := w.policy(s); got.Status != tlspolicy.STSNone {
			t.Errorf("%q: %+v", records, got)
		}
	}
	if w.fetched() != 0 {
		t.Errorf("%d fetches", w.fetched())
	}
	w.announce(errServfail)
	mustFail(t, "SERVFAIL", w.policy(s), tlspolicy.STSPolicyFetchError)
	w.announce(nil, record, record)
	mustFail(t, "two records", w.policy(s), tlspolicy.STSPolicyInvalid)
}

// RFC 8461 sections 3.3 and 5.1: until its age is over a policy counts, whatever
// an attacker does to DNS and to the policy's host.
func TestKeptPolicyCounts(t *testing.T) {
	w := newWorld(t)
	cache := new(Memory)
	mustBe(t, "first", w.policy(w.source(cache)), tlspolicy.STSModeEnforce)
	w.handle(func(rw http.ResponseWriter, _ *http.Request) { rw.WriteHeader(http.StatusNotFound) })
	start := w.now
	for _, after := range []time.Duration{2 * 24 * time.Hour, 7*24*time.Hour - time.Minute} {
		w.pass(start.Add(after).Sub(w.now))
		s := w.source(cache) // as after a restart
		mustBe(t, "policy gone", w.policy(s), tlspolicy.STSModeEnforce)
		w.announce(nil, "v=STSv1; id=2;")
		mustBe(t, "policy gone, another record", w.policy(s), tlspolicy.STSModeEnforce)
		w.announce(nil)
		mustBe(t, "record gone", w.policy(s), tlspolicy.STSModeEnforce)
		w.announce(errServfail)
		mustBe(t, "SERVFAIL", w.policy(s), tlspolicy.STSModeEnforce)
		w.announce(nil, record, record)
		mustBe(t, "two records", w.policy(s), tlspolicy.STSModeEnforce)
		w.announce(nil, record)
	}
	w.pass(2 * time.Minute) // a week is over
	s := w.source(cache)
	mustFail(t, "over, policy gone", w.policy(s), tlspolicy.STSPolicyFetchError)
	w.announce(nil)
	if got := w.policy(s); got.Status != tlspolicy.STSNone {
		t.Errorf("over, record gone: %+v", got)
	}
}

func TestFetch(t *testing.T) {
	for name, row := range map[string]struct {
		change func(*world)
		want   tlspolicy.Result // "" for a good one
	}{
		"good":              {func(*world) {}, ""},
		"mode none":         {func(w *world) { w.say("text/plain", "version: STSv1\nmode: none\nmax_age: 60\n") }, ""},
		"upper case":        {func(w *world) { w.say("Text/Plain", enforce) }, ""},
		"HTML":              {func(w *world) { w.say("text/html", enforce) }, tlspolicy.STSPolicyFetchError},
		"no content type":   {func(w *world) { w.say("", enforce) }, tlspolicy.STSPolicyFetchError},
		"no policy":         {func(w *world) { w.say("text/plain", "hello\n") }, tlspolicy.STSPolicyInvalid},
		"empty":             {func(w *world) { w.say("text/plain", "") }, tlspolicy.STSPolicyInvalid},
		"too long":          {func(w *world) { w.say("text/plain", enforce+strings.Repeat("x: y\n", 14_000)) }, tlspolicy.STSPolicyInvalid},
		"not found":         {func(w *world) { w.handle(http.NotFound) }, tlspolicy.STSPolicyFetchError},
		"error with policy": {func(w *world) { w.handle(status(http.StatusInternalServerError)) }, tlspolicy.STSPolicyFetchError},
		"redirection": {func(w *world) {
			w.handle(func(rw http.ResponseWriter, r *http.Request) {
				http.Redirect(rw, r, "https://attacker.test/policy.txt", http.StatusFound)
			})
		}, tlspolicy.STSPolicyFetchError},
		"closed": {func(w *world) { w.handle(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }) }, tlspolicy.STSPolicyFetchError},
		"cut short": {func(w *world) {
			w.handle(func(rw http.ResponseWriter, _ *http.Request) {
				rw.Header().Set("Content-Type", "text/plain")
				rw.Header().Set("Content-Length", "10000")
				_, _ = rw.Write([]byte(enforce))
			})
		}, tlspolicy.STSPolicyFetchError},
		"wrong name": {func(w *world) {
			w.cert = w.public.Issue(w.t, deliverytest.Certificate{Names: []string{"example.test", "www.example.test"}})
		}, tlspolicy.STSWebPKIInvalid},
		"expired": {func(w *world) {
			w.cert = w.public.Issue(w.t, deliverytest.Certificate{Names: []string{"mta-sts.example.test"}, From: w.now.AddDate(-1, 0, 0), To: w.now.AddDate(0, 0, -1)})
		}, tlspolicy.STSWebPKIInvalid},
		"self-signed": {func(w *world) {
			w.cert = w.public.Issue(w.t, deliverytest.Certificate{Names: []string{"mta-sts.example.test"}, SelfMade: true})
		}, tlspolicy.STSWebPKIInvalid},
		"host is down": {func(w *world) { w.server.Close() }, tlspolicy.STSPolicyFetchError},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			row.change(w)
			got := w.policy(w.source(nil))
			if row.want != "" {
				mustFail(t, name, got, row.want)
			} else if got.Status != tlspolicy.STSFound {
				t.Errorf("%+v", got)
			}
		})
	}
}

func status(code int) http.HandlerFunc {
	return func(rw http.ResponseWriter, _ *http.Request) {
		rw.Header().Set("Content-Type", "text/plain")
		rw.WriteHeader(code)
		_, _ = rw.Write([]byte(enforce))
	}
}

// A host that fails is left alone for a while, unless its record changes.
func TestFailedFetchIsNotRepeatedAtOnce(t *testing.T) {
	w := newWorld(t)
	s := w.source(nil)
	w.handle(http.NotFound)
	for range 3 {
		mustFail(t, "not found", w.policy(s), tlspolicy.STSPolicyFetchError)
	}
	if w.fetched() != 1 {
		t.Errorf("%d fetches", w.fetched())
	}
	w.say("text/plain", enforce)
	mustFail(t, "in the pause", w.policy(s), tlspolicy.STSPolicyFetchError)
	w.announce(nil, "v=STSv1; id=2;")
	mustBe(t, "another record", w.policy(s), tlspolicy.STSModeEnforce)

	s = w.source(nil)
	w.handle(http.NotFound)
	mustFail(t, "not found", w.policy(s), tlspolicy.STSPolicyFetchError)
	w.say("text/plain", enforce)
	w.pass(failurePause)
	mustBe(t, "after the pause", w.policy(s), tlspolicy.STSModeEnforce)
}

// Many that ask at once cost one fetch, and who gives up does not spoil it for
// the others.
func TestConcurrentCallers(t *testing.T) {
	w := newWorld(t)
	entered, release := make(chan struct{}), make(chan struct{})
	w.handle(func(rw http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-release
		rw.Header().Set("Content-Type", "text/plain")
		_, _ = rw.Write([]byte(enforce))
	})
	s := w.source(nil)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() { mustBe(t, "one of many", w.policy(s), tlspolicy.STSModeEnforce) })
	}
	<-entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	mustFail(t, "gave up", s.Policy(ctx, "example.test"), tlspolicy.STSPolicyFetchError)
	close(release)
	group.Wait()
	if w.fetched() != 1 {
		t.Errorf("%d fetches", w.fetched())
	}
}

func TestMemoryIsBounded(t *testing.T) {
	var m Memory
	start := time.Now()
	name := func(i int) mail.Domain { return mail.Domain(fmt.Sprintf("d%d.test", i)) }
	for i := range memoryMax + 10 {
		if err := m.Put(t.Context(), name(i), Entry{ID: "1", Text: []byte(enforce), Fetched: start.Add(time.Duration(i) * time.Second)}); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := m.Get(t.Context(), name(0)); ok || len(m.entries) != memoryMax {
		t.Errorf("%d entries", len(m.entries))
	}
	if e, ok := m.Get(t.Context(), name(memoryMax+9)); !ok || e.ID != "1" {
		t.Errorf("the last: %+v", e)
	}
}

// What others see is neither announced first nor kept.
func TestFetchAsOthersSee(t *testing.T) {
	w := newWorld(t)
	w.announce(nil)
	cache := new(Memory)
	s := w.source(cache)
	if p, err := s.Fetch(t.Context(), "example.test"); err != nil || p.Mode != tlspolicy.STSModeEnforce {
		t.Errorf("%+v %v", p, err)
	}
	if _, kept := cache.Get(t.Context(), "example.test"); kept || w.fetched() != 1 {
		t.Errorf("kept %v, fetched %d times", kept, w.fetched())
	}
	w.say("text/html", enforce)
	if p, err := s.Fetch(t.Context(), "example.test"); err == nil {
		t.Errorf("HTML: %+v", p)
	}
}
