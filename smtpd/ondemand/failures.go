package ondemand

import (
	"net/netip"
	"sync"
	"time"
)

const (
	// failuresMax is how many authentications of one client may fail within
	// failuresTime before it is heard no more until they are forgotten. A client is an
	// IPv4 address or an IPv6 /64.
	failuresMax  = 10
	failuresTime = 10 * time.Minute
	// clientsMax bounds how many clients are remembered; who failed longest ago gives
	// way.
	clientsMax = 4096
)

// failures are who failed to authenticate.
type failures struct {
	now func() time.Time
	mu  sync.Mutex
	of  map[netip.Prefix]failed
}

type failed struct {
	count int
	last  time.Time
}

func newFailures(now func() time.Time) failures {
	return failures{now: now, of: make(map[netip.Prefix]failed)}
}

// barred reports whether a client has failed too often.
func (f *failures) barred(client netip.Prefix) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	one, ok := f.of[client]
	if ok && f.now().Sub(one.last) >= failuresTime {
		delete(f.of, client)
		return false
	}
	return one.count >= failuresMax
}

// note counts one more.
func (f *failures) note(client netip.Prefix) {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := f.now()
	one, known := f.of[client]
	if known && now.Sub(one.last) >= failuresTime {
		one.count = 0
	}
	if !known && len(f.of) >= clientsMax {
		var first netip.Prefix
		for c, o := range f.of {
			if old, ok := f.of[first]; !ok || o.last.Before(old.last) {
				first = c
			}
		}
		delete(f.of, first)
	}
	f.of[client] = failed{one.count + 1, now}
}

// clientOf is whom an address stands for.
func clientOf(a netip.Addr) netip.Prefix {
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}
