package spool_test

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster/spool"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// BenchmarkPut measures what one node's disk takes: bodies of 4 KB and 64 KB
// from 1, 20 and 100 writers. What was written is deleted every benchBytesMax,
// so that no run fills the disk. bodies/sync is how many shared one.
func BenchmarkPut(b *testing.B) {
	const benchBytesMax = 256 << 20
	for _, size := range []int{4 << 10, 64 << 10} {
		for _, writers := range []int{1, 20, 100} {
			b.Run(fmt.Sprintf("%dKB/%d", size>>10, writers), func(b *testing.B) {
				s, err := spool.Open(vfs.OS(), b.TempDir(), spool.Options{})
				if err != nil {
					b.Fatal(err)
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
			})
		}
	}
}
