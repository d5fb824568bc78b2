package cluster

import (
	"slices"
	"sync"
)

// A peerLoad spreads fetches over the peers. The zero value is ready.
type peerLoad struct {
	mu   sync.Mutex
	now  map[string]int // fetches under way
	turn int
}

// pick returns the name that is asked least at present and was not asked already,
// and what to call when it has answered; "" where there is none. Among equals
// the turn passes round.
func (l *peerLoad) pick(names, asked []string) (name string, done func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.now == nil {
		l.now = map[string]int{}
	}
	for i := range names {
		n := names[(l.turn+i)%len(names)]
		if !slices.Contains(asked, n) && (name == "" || l.now[n] < l.now[name]) {
			name = n
		}
	}
	if name == "" {
		return "", func() {}
	}
	l.turn++
	l.now[name]++
	return name, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.now[name]--; l.now[name] == 0 {
			delete(l.now, name)
		}
	}
}
