package spool

import (
	"runtime"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/segment"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// indexBytesPerBody is what a body may cost in memory, its share of the map's
// slack included: a part of what a queued message may cost.
const indexBytesPerBody = 160

// TestIndexMemory measures the index of a million bodies.
func TestIndexMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 150 MB")
	}
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const bodies = 1_000_000
	before := heap()
	s := &Spool{index: make(map[mail.QueueID]entry)}
	for n := range bodies {
		id := mail.MintQueueID(uint64(1_700_000_000_000+n/10), [10]byte{byte(n), byte(n >> 8), byte(n >> 16)})
		s.index[id] = entry{size: uint32(n), at: segment.PlaceAt(segment.Number(n/15_000+1), int64(n%15_000)*4200)}
	}
	each := float64(heap()-before) / bodies
	t.Logf("%d bodies: %.1f bytes each", bodies, each)
	if each > indexBytesPerBody || each < 64 {
		t.Errorf("%d bodies take %.1f bytes each, want 64 to %d", bodies, each, indexBytesPerBody)
	}
	runtime.KeepAlive(s)
}
