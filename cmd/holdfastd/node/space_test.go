package node

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestRegressionSpaceIsKeptForRaft: with the default, no body is written with less than
// 10 per cent free, from nobody, and mail is refused before.
//
// It holds this defect: bodies that other nodes pushed could take half of the space that
// is kept for Raft.
func TestRegressionSpaceIsKeptForRaft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var percent atomic.Int64 // negative: the look fails
		s := &space{free: func() (int, error) {
			if n := percent.Load(); n >= 0 {
				return int(n), nil
			}
			return 0, errors.New("a look that fails")
		}, min: 10}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go s.watch(ctx)
		for _, test := range []struct {
			percent          int64
			ample, low, full bool
		}{
			{50, true, false, false},
			{19, false, false, false},
			{15, false, false, false},
			{14, false, true, false},
			{10, false, true, false},
			{9, false, true, true},
			{-1, false, true, true}, // as it was
			{0, false, true, true},
			{20, true, false, false},
		} {
			percent.Store(test.percent)
			time.Sleep(spaceEvery + time.Second)
			synctest.Wait()
			if s.ample() != test.ample || s.Low() != test.low || s.Full() != test.full {
				t.Errorf("%d per cent: ample %v, low %v, full %v", test.percent, s.ample(), s.Low(), s.Full())
			}
		}
	})
}
