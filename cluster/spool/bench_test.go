package spool_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// BenchmarkPut measures what one node's disk takes: bodies of 4 KB and 64 KB
// from 1, 16 and 100 writers, into segments that were written ahead (up to three
// of 64 MiB; what goes beyond is recycled) and into segments that grow. What was
// written is deleted every benchBytesMax, so that no run fills the disk.
// bodies/sync is how many shared one.
func BenchmarkPut(b *testing.B) {
	for _, size := range []int{4 << 10, 64 << 10} {
		for _, writers := range []int{1, 16, 100} {
			for name, pool := range map[string]int{"prewritten": 3, "growing": 0} {
				b.Run(fmt.Sprintf("%dKB/%d/%s", size>>10, writers, name), func(b *testing.B) {
					benchmarkPut(b, size, writers, pool)
				})
			}
		}
	}
}

// benchBytesMax is less than the pool.
const benchBytesMax = 128 << 20

func benchmarkPut(b *testing.B, size, writers, pool int) {
	s, err := spool.Open(vfs.OS(), b.TempDir(), spool.Options{PoolFiles: pool})
	if err != nil {
		b.Fatal(err)
	}
	for s.Stats().DiskBytes < mail.ByteSize(pool)*64*mail.MiB {
		time.Sleep(100 * time.Millisecond) // nobody writes: the keeper fills the pool
	}
	// The octets are the same each time; only the id has to differ.
	ref, content := body(1, size)
	var next atomic.Int64
	b.SetBytes(int64(size))
	b.ResetTimer()
	for first := 0; first < b.N; first += benchBytesMax / size {
		last := int64(min(b.N, first+benchBytesMax/size))
		var wg sync.WaitGroup
		for range writers {
			wg.Go(func() {
				for {
					n := next.Add(1)
					if n > last {
						return
					}
					one := mail.BodyRef{ID: queueID(int(n)), Digest: ref.Digest, Size: ref.Size}
					if err := s.Put(one, content); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		next.Store(last)
		b.StopTimer()
		var ids []mail.QueueID
		for _, held := range s.Bodies() {
			ids = append(ids, held.Ref.ID)
		}
		if err := s.Delete(s.Doom(ids)); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.StopTimer()
	st := s.Stats()
	b.ReportMetric(float64(st.Puts)/float64(st.Syncs), "bodies/sync")
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
}
