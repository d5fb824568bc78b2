package sts

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// refreshAfter is when a policy is fetched again although its record is as it
	// was, so that it does not run out while its host cannot be reached (RFC 8461
	// section 10.2).
	refreshAfter = 24 * time.Hour
	// failurePause is how long a policy's host is left alone that failed (section
	// 3.3).
	failurePause = 5 * time.Minute
	// domainsMax bounds how many domains' last failures are remembered.
	domainsMax = 4096
)

// A Resolver looks up TXT records. *route.DNS is one.
type Resolver interface {
	// TXT returns the TXT records of a name, each in one piece. A name that has
	// none, or does not exist, gives none and no error.
	TXT(ctx context.Context, name string) ([]string, error)
}

// Config is what a Source is made of.
type Config struct {
	Resolver Resolver
	// Client fetches policies. Of it only the transport is used: whom it trusts,
	// and how it connects. Nil is one of its own, that trusts the host's
	// authorities.
	Client *http.Client
	// Cache is a Memory of its own if nil.
	Cache Cache
	// Now is the wall clock. Nil is time.Now.
	Now func() time.Time
	Log *slog.Logger
}

// A Source knows the policies of domains. It is safe for concurrent use.
type Source struct {
	c Config

	mu      sync.Mutex
	domains map[mail.Domain]*fetching
}

// A fetching is what is remembered of a domain beside the cache.
type fetching struct {
	turn   chan struct{} // holds one value while nobody fetches
	failed time.Time     // when the last fetch failed, zero if it did not
	id     string        // what the record said then
	result tlspolicy.Result
	err    error
}

// New returns a Source.
func New(c Config) *Source {
	var transport http.RoundTripper
	if c.Client != nil {
		transport = c.Client.Transport
	}
	if transport == nil {
		// Not the process's: its connections are kept open, and a policy is
		// fetched once a day.
		transport = &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true, TLSHandshakeTimeout: fetchTimeout}
	}
	c.Client = &http.Client{
		Transport: transport,
		// RFC 8461 section 3.3: redirections are not followed.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       fetchTimeout,
	}
	if c.Cache == nil {
		c.Cache = new(Memory)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return &Source{c: c, domains: make(map[mail.Domain]*fetching)}
}

// Policy returns what is known of a domain's policy, fetching it where it is not
// known or has changed. It takes as long as the lookup, and at most fetchTimeout
// more.
func (s *Source) Policy(ctx context.Context, domain mail.Domain) tlspolicy.STS {
	records, err := s.c.Resolver.TXT(ctx, "_mta-sts."+string(domain))
	id := ""
	result := tlspolicy.STSPolicyFetchError
	if err == nil {
		if id, err = tlspolicy.ParseSTSRecord(records); err != nil {
			result = tlspolicy.STSPolicyInvalid
		}
	}
	entry, policy, kept := s.kept(ctx, domain)
	switch {
	case err == nil && id == "":
		if kept { // Section 5.1: its record gone, a policy still counts.
			return found(policy)
		}
		return tlspolicy.STS{Status: tlspolicy.STSNone}
	case err != nil:
		if kept {
			return found(policy)
		}
		return tlspolicy.STS{Status: tlspolicy.STSUnknown, Result: result, Err: fmt.Errorf("_mta-sts.%s: %w", domain, err)}
	case kept && !s.due(entry, policy, id):
		return found(policy)
	}
	return s.refresh(ctx, domain, id)
}

func found(p tlspolicy.STSPolicy) tlspolicy.STS {
	return tlspolicy.STS{Status: tlspolicy.STSFound, Policy: p}
}

// kept returns what the cache has, if it still counts.
func (s *Source) kept(ctx context.Context, domain mail.Domain) (Entry, tlspolicy.STSPolicy, bool) {
	entry, ok := s.c.Cache.Get(ctx, domain)
	if !ok {
		return Entry{}, tlspolicy.STSPolicy{}, false
	}
	policy, err := tlspolicy.ParseSTSPolicy(entry.Text)
	if err != nil || !s.c.Now().Before(entry.Fetched.Add(policy.MaxAge)) {
		return Entry{}, tlspolicy.STSPolicy{}, false
	}
	return entry, policy, true
}

// due reports whether a policy that counts is to be fetched again.
func (s *Source) due(e Entry, p tlspolicy.STSPolicy, id string) bool {
	return e.ID != id || s.c.Now().Sub(e.Fetched) >= min(refreshAfter, p.MaxAge/2)
}

// refresh fetches a policy, one caller at a time for each domain. What the cache
// has is good enough where that fails, and while another caller is at it.
func (s *Source) refresh(ctx context.Context, domain mail.Domain, id string) tlspolicy.STS {
	f := s.fetching(domain)
	select {
	case <-f.turn:
	case <-ctx.Done():
		return s.keptOr(ctx, domain, tlspolicy.STSPolicyFetchError, ctx.Err())
	}
	defer func() { f.turn <- struct{}{} }()
	// Somebody may have fetched it while we waited.
	if entry, policy, ok := s.kept(ctx, domain); ok && !s.due(entry, policy, id) {
		return found(policy)
	}
	if f.id == id && !f.failed.IsZero() && s.c.Now().Sub(f.failed) < failurePause {
		return s.keptOr(ctx, domain, f.result, f.err)
	}
	text, policy, result, err := s.fetch(ctx, domain)
	if err != nil {
		if ctx.Err() == nil { // Else it is the caller who gave up.
			f.failed, f.id, f.result, f.err = s.c.Now(), id, result, err
			s.c.Log.Warn("MTA-STS policy not fetched", "domain", domain, "result", string(result), "error", err)
		}
		return s.keptOr(ctx, domain, result, err)
	}
	f.failed = time.Time{}
	if err := s.c.Cache.Put(ctx, domain, Entry{ID: id, Text: text, Fetched: s.c.Now()}); err != nil {
		s.c.Log.Warn("MTA-STS policy not kept", "domain", domain, "error", err)
	}
	return found(policy)
}

func (s *Source) keptOr(ctx context.Context, domain mail.Domain, result tlspolicy.Result, err error) tlspolicy.STS {
	if _, policy, ok := s.kept(ctx, domain); ok {
		return found(policy)
	}
	return tlspolicy.STS{Status: tlspolicy.STSUnknown, Result: result, Err: err}
}

func (s *Source) fetching(domain mail.Domain) *fetching {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.domains[domain]
	if f == nil {
		if len(s.domains) >= domainsMax {
			clear(s.domains) // Costs a fetch each.
		}
		f = &fetching{turn: make(chan struct{}, 1)}
		f.turn <- struct{}{}
		s.domains[domain] = f
	}
	return f
}
