package cluster

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

func TestThrottle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &throttle{rate: 1000}
		began := time.Now()
		for range 100 {
			if err := p.wait(t.Context(), 100); err != nil {
				t.Fatal(err)
			}
		}
		// 10,000 octets at 1,000 a second, less the burst and the last one, which
		// the next would pay for.
		if took, want := time.Since(began), 10*time.Second-throttleBurst-100*time.Millisecond; took != want {
			t.Errorf("took %s, want %s", took, want)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		if err := p.wait(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("ended with %v", err)
		}
	})
}

// However large the bodies, those in memory fit into the budget, and a larger
// one comes alone.
func TestByteBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &byteBudget{max: 100}
		var lock sync.Mutex
		var now, most mail.ByteSize
		var all sync.WaitGroup
		for i := range 50 {
			size := mail.ByteSize(30 + 3*i) // up to 177
			all.Go(func() {
				release, err := b.take(t.Context(), size)
				if err != nil {
					t.Error(err)
					return
				}
				defer release()
				lock.Lock()
				now += min(size, b.max)
				most = max(most, now)
				lock.Unlock()
				time.Sleep(time.Second)
				lock.Lock()
				now -= min(size, b.max)
				lock.Unlock()
			})
		}
		all.Wait()
		if most > b.max || most < b.max/2 {
			t.Errorf("up to %d octets, and %d are allowed", most, b.max)
		}
		release, _ := b.take(t.Context(), b.max)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.take(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("no room: %v", err)
		}
		release()
	})
}
