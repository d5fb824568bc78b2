package sts

import (
	"context"
	"sync"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/tlspolicy"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// An Entry is a policy as it was fetched.
type Entry struct {
	ID      string    // of the record that announced it
	Text    []byte    // at most tlspolicy.STSPolicyBytesMax; nobody changes it
	Fetched time.Time // it counts until its max_age after this
}

// A Cache keeps policies. Its methods are called concurrently.
type Cache interface {
	// Get returns what was put last for a domain, and may return it though its
	// age is over.
	Get(ctx context.Context, domain mail.Domain) (Entry, bool)
	// Put keeps an entry until its age is over. An error means that a later
	// caller may have to fetch it again.
	Put(ctx context.Context, domain mail.Domain, e Entry) error
}

// memoryMax bounds a Memory: with policies of ordinary length some megabytes,
// and in the worst case 64 MiB.
const memoryMax = 1024

// Memory is a Cache that ends with the process. The zero value is empty.
type Memory struct {
	mu      sync.Mutex
	entries map[mail.Domain]Entry
}

// Get implements Cache.
func (m *Memory) Get(_ context.Context, domain mail.Domain) (Entry, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[domain]
	return e, ok
}

// Put implements Cache. Where it is full, the entry that ends first goes.
func (m *Memory) Put(_ context.Context, domain mail.Domain, e Entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.entries == nil {
		m.entries = make(map[mail.Domain]Entry)
	}
	if _, ok := m.entries[domain]; !ok && len(m.entries) >= memoryMax {
		var first mail.Domain
		var ends time.Time
		for d, e := range m.entries {
			if end := e.end(); first == "" || end.Before(ends) {
				first, ends = d, end
			}
		}
		delete(m.entries, first)
	}
	m.entries[domain] = e
	return nil
}

// end is when the entry does not count any more.
func (e Entry) end() time.Time {
	p, err := tlspolicy.ParseSTSPolicy(e.Text)
	if err != nil {
		return time.Time{}
	}
	return e.Fetched.Add(p.MaxAge)
}
