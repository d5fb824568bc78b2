package fsm

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/holdfast-mx/holdfast/proto/queuepb"
)

// TestMessageRecordsAreQueuepbs: what is written here is what the generated code
// would write, octet for octet, and what is read here is what it would read, for
// records with any fields, cut anywhere and with any octet changed.
func TestMessageRecordsAreQueuepbs(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 1))
	number := func() uint64 { return random.Uint64() >> random.IntN(64) * uint64(random.IntN(2)) }
	octets := func() []byte {
		b := make([]byte, random.IntN(200)*random.IntN(2))
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	flip := func() bool { return random.IntN(2) == 0 }
	var scratch, buffer []byte
	used := &queuepb.MessageRecord{}
	read := 0
	for n := range 3000 {
		r := &queuepb.MessageRecord{
			Entry: number(), Id: octets(), Settled: flip(), PossibleDuplicate: flip(), FingerprintKept: flip(),
			Ended: int64(number()), Sealed: octets(), OriginNumber: uint32(number()),
		}
		for range random.IntN(4) {
			r.Parts = append(r.Parts, &queuepb.PartRecord{
				Domain: uint32(number()), Lease: number(), Begun: flip(), RetryAt: int64(number()),
				DoubtUntil: int64(number()), Doubted: number(), Attempts: uint32(number()), Released: int64(number()),
			})
		}
		rare := n%10 == 0
		if rare {
			switch random.IntN(3) {
			case 0:
				r.Notes = []*queuepb.NoteRecord{{Reason: "r"}}
			case 1:
				r.Origin = &queuepb.OriginRecord{Node: "n"}
			case 2:
				r.Accepted = []byte("a")
			}
		}
		want, err := proto.MarshalOptions{Deterministic: true}.Marshal(&queuepb.SnapshotRecord{Record: &queuepb.SnapshotRecord_Message{Message: r}})
		if err != nil {
			t.Fatal(err)
		}
		got, ok := appendMessageRecord(buffer[:0], r, &scratch)
		if ok == rare || !rare && !bytes.Equal(got, want) {
			t.Fatalf("%v\ngot  %x, %v\nwant %x", r, got, ok, want)
		}
		if readMessageRecord(want, used) == rare || !rare && !proto.Equal(used, r) {
			t.Fatalf("read %v\nwant %v", used, r)
		}
		damaged := bytes.Clone(want)
		damaged[random.IntN(len(damaged))] = byte(random.Uint32())
		for _, b := range [][]byte{damaged, want[:random.IntN(len(want))], append(bytes.Clone(want), want...), append(bytes.Clone(want), damaged...)} {
			if !readMessageRecord(b, used) {
				continue
			}
			read++
			var p queuepb.SnapshotRecord
			if err := proto.Unmarshal(b, &p); err != nil || !proto.Equal(p.GetMessage(), used) {
				t.Fatalf("%x is read as %v, and is %v, %v", b, used, &p, err)
			}
		}
	}
	// Octets where a number belongs, in a part and in the record: an unknown field.
	for _, b := range [][]byte{{0x1a, 4, 0x42, 2, 0x0a, 0}, {0x1a, 2, 0x0a, 0}} {
		if readMessageRecord(b, used) {
			t.Errorf("%x is read as %v", b, used)
		}
	}
	if read < 1000 {
		t.Errorf("only %d damaged records were read", read)
	}
}
