package fsm_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A stream is mail as a backup MX sees it: senders with a path of their own per
// message from some hundred hosts, a few thousand recipients, one recipient per
// message. The same seed gives the same mail.
type stream struct {
	random *rand.Rand
	sent   uint64
	last   mail.QueueID
}

func newStream() *stream { return &stream{random: rand.New(rand.NewPCG(1, 2))} }

const letters = "abcdefghijklmnopqrstuvwxyz0123456789"

func (s *stream) word(n int) string {
	b := make([]byte, n)
	for i := range b {
		b[i] = letters[s.random.IntN(len(letters))]
	}
	return string(b)
}

// next returns the Accept of the next message. Each settles the one before, as
// most mail is settled a second after its 250.
func (s *stream) next() fsm.Command {
	s.sent++
	var random [10]byte
	binary.BigEndian.PutUint64(random[:], s.random.Uint64())
	id := mail.MintQueueID(1_790_000_000_000+s.sent/3, random)
	host := s.random.IntN(400)
	from, _ := mail.ParseReversePath(fmt.Sprintf("bounce-%s@mta%d.news%d.example.net", s.word(12), host%7, host), false)
	to, _ := mail.ParseForwardPath(fmt.Sprintf("some.person%d@example.test", s.random.IntN(5000)), false)
	ref := mail.BodyRef{ID: id, Size: mail.ByteSize(4096 + s.random.IntN(64))}
	for i := 0; i < len(ref.Digest); i += 8 {
		binary.BigEndian.PutUint64(ref.Digest[i:], s.random.Uint64())
	}
	c := fsm.Command{Node: fsm.NodeName(fmt.Sprintf("mx%d", s.sent%3)), Action: fsm.Accept{
		Envelope: mail.Envelope{
			From:       from,
			Recipients: []mail.Recipient{{Path: to, Domain: "example.test"}},
			EightBit:   true,
			Trace: mail.Trace{
				Hello:    fmt.Sprintf("mta%d.news%d.example.net", host%7, host),
				Client:   netip.AddrFrom4([4]byte{198, 51, byte(host), byte(s.random.IntN(8))}),
				Node:     fmt.Sprintf("mx%d.example.test", s.sent%3),
				Protocol: "ESMTPS",
				TLS:      "TLS1.3 TLS_AES_128_GCM_SHA256",
				Received: 1_790_000_000 + int64(s.sent/3000),
			},
		},
		Body: ref,
	}}
	if !s.last.IsZero() {
		c.Settled = []mail.QueueID{s.last}
	}
	s.last = id
	return c
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkMillion says what a queue of a million messages costs: heap, the
// size of a snapshot, how long it takes to write and to read, and by how much
// it holds Apply up. Run it with -benchtime 1x.
func BenchmarkMillion(b *testing.B) {
	messages := 1_000_000
	if n, err := strconv.Atoi(os.Getenv("MESSAGES")); err == nil {
		messages = n
	}
	per := func(n float64) float64 { return n / float64(messages) }
	for b.Loop() {
		before := liveHeap()
		s, mails := fsm.New(), newStream()
		s.Apply(1, fsm.Command{Action: fsm.PutDomain{Domain: fsm.Domain{Name: "example.test", MX: true}}})
		s.Apply(2, fsm.Command{Action: fsm.RecordStart{Server: "mx1/1", Number: 1}})
		index := fsm.Index(2)
		apply := func(c fsm.Command) time.Duration {
			index++
			began := time.Now()
			r, _ := s.Apply(index, c)
			took := time.Since(began)
			if r.Verdict != fsm.Done {
				b.Fatal(r)
			}
			return took
		}
		used := cpu()
		for range messages {
			mails.next()
		}
		making := cpu() - used
		mails, used = newStream(), cpu()
		for range messages {
			apply(mails.next())
		}
		b.ReportMetric(per(float64((cpu() - used - making).Nanoseconds())), "apply-cpu-ns/message")
		b.ReportMetric(per(float64(liveHeap()-before)), "heap-B/message")
		collecting := cpu()
		runtime.GC()
		b.ReportMetric(float64((cpu() - collecting).Milliseconds()), "gc-ms")

		// Apply goes on while a snapshot is written.
		quiet, busy := time.Duration(0), time.Duration(0)
		for range 20_000 {
			quiet = max(quiet, apply(mails.next()))
		}
		began := time.Now()
		view := s.Snapshot()
		taken := time.Since(began)
		written := make(chan int64)
		go func() {
			var n counting
			if err := view.Encode(&n); err != nil {
				b.Error(err)
			}
			written <- int64(n)
		}()
		during := 0
		var size int64
		for size == 0 {
			select {
			case size = <-written:
			default:
				busy = max(busy, apply(mails.next()))
				during++
			}
		}
		view = nil
		b.ReportMetric(float64(taken.Microseconds()), "snapshot-us")
		b.ReportMetric(float64(quiet.Microseconds())/1000, "longest-apply-quiet-ms")
		b.ReportMetric(float64(busy.Microseconds())/1000, "longest-apply-during-ms")
		b.ReportMetric(float64(during), "applies-during")
		b.ReportMetric(per(float64(size)), "snapshot-B/message")

		var encoded bytes.Buffer
		encoded.Grow(int(size) * 11 / 10)
		var memory runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&memory)
		allocated := memory.TotalAlloc
		used = cpu()
		if err := s.Encode(&encoded); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64((cpu() - used).Milliseconds()), "encode-cpu-ms")
		runtime.ReadMemStats(&memory)
		b.ReportMetric(per(float64(memory.TotalAlloc-allocated)), "encode-alloc-B/message")

		s, mails = nil, nil
		runtime.GC()
		used = cpu()
		restored, err := fsm.Decode(&encoded)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64((cpu() - used).Milliseconds()), "decode-cpu-ms")
		runtime.KeepAlive(restored)
	}
}

// counting is a Writer that counts.
type counting int64

func (n *counting) Write(p []byte) (int, error) {
	*n += counting(len(p))
	return len(p), nil
}

var _ io.Writer = new(counting)
