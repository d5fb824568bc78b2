package fsm_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// ordinary returns the Accept of the n-th of many ordinary messages: one
// recipient, real lengths.
func ordinary(n int) fsm.Command {
	var random [10]byte
	binary.BigEndian.PutUint64(random[:], uint64(n)*0x9e3779b97f4a7c15)
	id := mail.MintQueueID(1_790_000_000_000+uint64(n)*7, random)
	from, _ := mail.ParseReversePath(fmt.Sprintf("bounces+%d@news.example.net", 100000+n), false)
	to, _ := mail.ParseForwardPath(fmt.Sprintf("some.person%d@example.test", n%5000), false)
	return fsm.Command{Node: "mx1", Action: fsm.Accept{
		Envelope: mail.Envelope{
			From:       from,
			Recipients: []mail.Recipient{{Path: to, Domain: "example.test"}},
			EightBit:   true,
			Trace: mail.Trace{
				Hello:    "mail-out-17.example.net",
				Client:   netip.MustParseAddr("198.51.100.17"),
				Node:     "mx1.example.test",
				Protocol: "ESMTPS",
				TLS:      "TLS1.3 TLS_AES_128_GCM_SHA256",
				Received: 1_790_000_000 + int64(n),
			},
		},
		Body: mail.NewBody(random[:]).Ref(id),
	}}
}

// filled returns a State with n ordinary messages, queued and, as most mail is
// a second after its 250, settled.
func filled(n int) *fsm.State {
	s := fsm.New()
	index := fsm.Index(1)
	s.Apply(index, fsm.Command{Action: fsm.PutDomain{Domain: fsm.Domain{Name: "example.test", MX: true}}})
	index++
	s.Apply(index, fsm.Command{Action: fsm.RecordStart{Server: "mx1/1", Number: 1}})
	for k := range n {
		c := ordinary(k)
		if k > 0 {
			c.Settled = []mail.QueueID{ordinary(k - 1).Action.(fsm.Accept).Body.ID}
		}
		index++
		s.Apply(index, c)
	}
	return s
}

func liveHeap() uint64 {
	octets, _ := live()
	return octets
}

// live returns what lives on the heap, and in how many objects.
func live() (octets, objects uint64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc, m.HeapObjects
}

// TestMemoryPerMessage holds the promise that a queue of millions fits into a
// small host: docs/architecture.md, data path. The bound leaves room for what
// the spool keeps per body beside it.
//
// What the garbage collector does for each object, each time it runs, slowed
// acceptance down by a sixth when a million messages were two million objects.
func TestMemoryPerMessage(t *testing.T) {
	const messages, bytesMax, objectsMax = 50_000, 370, 0.25
	before, objectsBefore := live()
	s := filled(messages)
	after, objectsAfter := live()
	perMessage := (after - before) / messages
	objects := float64(objectsAfter-objectsBefore) / messages
	t.Logf("%d bytes of live heap per queued message, in %.2f objects", perMessage, objects)
	if perMessage > bytesMax || objects > objectsMax {
		t.Errorf("%d bytes of live heap per queued message in %.2f objects, want at most %d in %.2f", perMessage, objects, bytesMax, objectsMax)
	}
	runtime.KeepAlive(s)
}

func BenchmarkAccept(b *testing.B) {
	s := filled(0)
	index := s.Applied()
	for n := range b.N {
		index++
		s.Apply(index, ordinary(n))
	}
}

func BenchmarkSnapshot(b *testing.B) {
	for _, n := range []int{1_000, 50_000} {
		s := filled(n)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				s.Snapshot()
			}
		})
	}
}

func BenchmarkEncode(b *testing.B) {
	s := filled(50_000)
	for b.Loop() {
		if err := s.Encode(io.Discard); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	var encoded bytes.Buffer
	if err := filled(50_000).Encode(&encoded); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := fsm.Decode(bytes.NewReader(encoded.Bytes())); err != nil {
			b.Fatal(err)
		}
	}
}
