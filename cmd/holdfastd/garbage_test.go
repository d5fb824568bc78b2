package main

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"testing"
)

func TestGarbagePercent(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, 400}, {1 << 20, 400}, {16 << 20, 400}, {32 << 20, 200}, {64 << 20, 100}, {100 << 20, 64},
		{160 << 20, 60}, {450 << 20, 60}, {math.MaxUint64, 60},
	} {
		if got := garbagePercent(c.live); got != c.want {
			t.Errorf("%d MiB live: %d %%, want %d", c.live>>20, got, c.want)
		}
	}
	// A heap that grows and falls back is never allowed less than what the
	// constants promise, nor twice itself where it is large.
	for live := uint64(1 << 20); live < 2<<30; live += 1 << 20 {
		garbage := live * uint64(garbagePercent(live)) / 100
		if live > 16<<20 && garbage < min(garbageBytesMin, live*garbagePercentMin/100)*99/100 || live > 64<<20 && garbage > live {
			t.Errorf("%d MiB live: %d MiB of garbage", live>>20, garbage>>20)
		}
	}
}

// TestCollectGarbage: the collector is told, and told again when much more lives.
func TestCollectGarbage(t *testing.T) {
	t.Setenv("GOGC", "")
	defer debug.SetGCPercent(debug.SetGCPercent(100))
	look := func() int {
		runtime.GC()
		ended, end := context.WithCancel(t.Context())
		end()
		collectGarbage(ended) // looks once
		percent := debug.SetGCPercent(100)
		return percent
	}
	small := look()
	ballast := make([]byte, 256<<20)
	large := look()
	runtime.KeepAlive(ballast)
	if small <= large || large != garbagePercentMin {
		t.Errorf("%d %%, and %d %% with 256 MiB more", small, large)
	}
	t.Setenv("GOGC", "77")
	debug.SetGCPercent(77)
	if got := look(); got != 77 {
		t.Errorf("%d %% in spite of GOGC", got)
	}
}

func TestDiffers(t *testing.T) {
	for _, c := range []struct {
		percent, set int
		want         bool
	}{{400, 0, true}, {40, 40, false}, {44, 40, false}, {45, 40, true}, {36, 40, false}, {35, 40, true}} {
		if got := differs(c.percent, c.set); got != c.want {
			t.Errorf("%d after %d: %v", c.percent, c.set, got)
		}
	}
}
