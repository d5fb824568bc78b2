package peer

import (
	"bytes"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	pb "github.com/holdfast-mx/holdfast/proto/peerpb"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// generated is a frame as the generated code has it.
func (f *frame) generated() *pb.PushFrame {
	return &pb.PushFrame{Checksum: (*uint32)(f.checksum), Number: f.number, Ref: f.ref, Data: bytes.Join(f.data, nil), Last: f.last, Abandoned: f.abandoned, TellTaken: f.tellTaken}
}

func (f *frames) generated() *pb.PushFrames {
	all := new(pb.PushFrames)
	for i := range f.list {
		all.Frames = append(all.Frames, f.list[i].generated())
	}
	return all
}

// split is b in pieces of memory, cut wherever the random source says.
func split(b []byte, random *rand.Rand) (pieces mem.BufferSlice) {
	for len(b) > 0 {
		n := 1 + random.IntN(len(b))
		if random.IntN(3) == 0 {
			n = min(n, 1+random.IntN(4))
		}
		pieces, b = append(pieces, mem.SliceBuffer(b[:n])), b[n:]
		if random.IntN(8) == 0 {
			pieces = append(pieces, mem.SliceBuffer(nil))
		}
	}
	return pieces
}

func randomFrames(random *rand.Rand) *frames {
	f := new(frames)
	octets := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(random.Uint32())
		}
		return b
	}
	numbers := []uint64{0, 1, 127, 128, 1 << 32, 1<<64 - 1}
	for range random.IntN(20) {
		one := frame{number: numbers[random.IntN(len(numbers))], last: random.IntN(2) == 0, abandoned: random.IntN(4) == 0, tellTaken: random.IntN(2) == 0}
		if random.IntN(2) == 0 {
			one.ref = octets(random.IntN(70))
		}
		if random.IntN(2) == 0 {
			one.checksum = new(mail.Checksum(random.Uint32()))
		}
		for range random.IntN(5) {
			sizes := []int{0, 1, smallDataBytes, smallDataBytes + 1, 1 + random.IntN(3000)}
			one.data = append(one.data, octets(sizes[random.IntN(len(sizes))]))
		}
		f.list = append(f.list, one)
	}
	return f
}

// TestFramesAreTheGeneratedMessage: what we write the generated code reads, and
// the other way round, wherever the memory is cut.
func TestFramesAreTheGeneratedMessage(t *testing.T) {
	random := rand.New(rand.NewPCG(6, 7))
	for range 400 {
		sent := randomFrames(random)
		want := sent.generated()
		encoded, err := newCodec().Marshal(sent)
		if err != nil {
			t.Fatal(err)
		}
		wire := encoded.Materialize()
		theirs := new(pb.PushFrames)
		if err := proto.Unmarshal(wire, theirs); err != nil || !proto.Equal(theirs, want) {
			t.Fatalf("the generated code reads %v, %v; want %v", theirs, err, want)
		}
		canonical, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		for _, from := range [][]byte{wire, canonical} {
			got := new(frames)
			if err := newCodec().Unmarshal(split(from, random), got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got.generated(), want) {
				t.Fatalf("read %v, want %v", got.generated(), want)
			}
			got.free()
		}
	}
	other := &pb.PushAcks{Acks: []*pb.PushAck{{Number: 7, Detail: "no space"}}}
	encoded, err := newCodec().Marshal(other)
	if err != nil {
		t.Fatal(err)
	}
	got := new(pb.PushAcks)
	if err := newCodec().Unmarshal(encoded, got); err != nil || !proto.Equal(got, other) {
		t.Errorf("another message: %v, %v", got, err)
	}
}

// agree holds our reader to the generated one for octets of any origin. Ours is
// stricter in what no sender of ours makes: groups, and more than the limits.
func agree(t *testing.T, wire []byte, random *rand.Rand) {
	t.Helper()
	theirs := new(pb.PushFrames)
	theirErr := proto.Unmarshal(wire, theirs)
	ours := new(frames)
	err := newCodec().Unmarshal(split(wire, random), ours)
	switch {
	case err == nil && theirErr != nil:
		t.Fatalf("%x: read as %v, and the generated code says %v", wire, ours.generated(), theirErr)
	case err == nil && !proto.Equal(ours.generated(), known(theirs)):
		t.Fatalf("%x: read as %v, by the generated code as %v", wire, ours.generated(), theirs)
	case err != nil && theirErr == nil && len(theirs.GetFrames()) <= framesMax && len(wire) <= messageBytesMax && !strings.Contains(err.Error(), "type 3"):
		t.Fatalf("%x: %v, and the generated code reads %v", wire, err, theirs)
	case err != nil && (ours.list != nil || ours.received != nil):
		t.Fatalf("%x: something is left of what could not be read", wire)
	}
}

// known is f without the fields that it does not know.
func known(f *pb.PushFrames) *pb.PushFrames {
	f.ProtoReflect().SetUnknown(nil)
	for _, one := range f.GetFrames() {
		one.ProtoReflect().SetUnknown(nil)
	}
	return f
}

// TestFramesOfStrangers: unknown fields, every truncation, and damage of all
// kinds.
func TestFramesOfStrangers(t *testing.T) {
	random := rand.New(rand.NewPCG(8, 9))
	for range 60 {
		wire, err := proto.Marshal(randomFrames(random).generated())
		if err != nil {
			t.Fatal(err)
		}
		step := 1 + len(wire)/50
		for n := 0; n < len(wire); n += step {
			agree(t, wire[:n], random)
		}
		for range 60 {
			damaged := bytes.Clone(wire)
			for range 1 + random.IntN(3) {
				if len(damaged) == 0 {
					break
				}
				at := random.IntN(min(len(damaged), 100))
				switch random.IntN(3) {
				case 0:
					damaged[at] = byte(random.Uint32())
				case 1:
					damaged = append(damaged[:at:at], damaged[at+1:]...)
				default:
					damaged = append(append(damaged[:at:at], byte(random.Uint32())), damaged[at:]...)
				}
			}
			agree(t, damaged, random)
		}
	}
	one := func(fields ...[]byte) []byte {
		body := bytes.Join(fields, nil)
		return append(protowire.AppendVarint(protowire.AppendTag(nil, fieldFrames, protowire.BytesType), uint64(len(body))), body...)
	}
	tag := func(n protowire.Number, kind protowire.Type) []byte { return protowire.AppendTag(nil, n, kind) }
	number := append(tag(fieldNumber, protowire.VarintType), 5)
	overlong := append(tag(fieldNumber, protowire.VarintType), bytes.Repeat([]byte{0xff}, 9)...)
	for name, wire := range map[string][]byte{
		"unknown fields":          one(number, tag(99, protowire.VarintType), []byte{1}, tag(98, protowire.Fixed32Type), make([]byte, 4), tag(97, protowire.Fixed64Type), make([]byte, 8), tag(96, protowire.BytesType), []byte{2, 0, 0}),
		"unknown beside":          append(append(tag(9, protowire.BytesType), 1, 0), one(number)...),
		"known with another type": one(append(tag(fieldData, protowire.VarintType), 7), append(tag(fieldNumber, protowire.BytesType), 0), number),
		"frames with another":     append(append(tag(fieldFrames, protowire.VarintType), 7), one(number)...),
		"the last one counts":     one(number, number, append(tag(fieldRef, protowire.BytesType), 1, 'a'), append(tag(fieldRef, protowire.BytesType), 1, 'b'), append(tag(fieldData, protowire.BytesType), 1, 'a'), append(tag(fieldData, protowire.BytesType), 0)),
		"true is not 0":           one(append(tag(fieldLast, protowire.VarintType), 0x80, 0x02)),
		"the largest number":      one(overlong, []byte{1}),
		"a larger number":         one(overlong, []byte{2}),
		"eleven octets":           one(overlong, []byte{0x81, 0}),
		"field 0":                 one([]byte{0, 0}),
		"field beyond all":        one(append(protowire.AppendVarint(nil, uint64(protowire.MaxValidNumber+1)<<3), 0)),
		"type 6":                  one([]byte{9<<3 | 6, 0}),
		"a frame too long":        append(tag(fieldFrames, protowire.BytesType), 3, 8, 5),
		"a field beyond it":       append(tag(fieldFrames, protowire.BytesType), 2, byte(fieldData<<3|2), 3, 0, 0, 0),
		"a length beyond all":     append(protowire.AppendVarint(tag(fieldFrames, protowire.BytesType), 1<<63), 0),
		"data beyond all":         one(protowire.AppendVarint(tag(fieldData, protowire.BytesType), 1<<64-1)),
	} {
		t.Run(name, func(t *testing.T) {
			for range 5 {
				agree(t, wire, random)
			}
		})
	}
	many := bytes.Repeat([]byte{byte(fieldFrames<<3 | 2), 0}, framesMax)
	agree(t, many, random)
	if err := new(frames).unmarshal(mem.BufferSlice{mem.SliceBuffer(append(many, many[:2]...))}); err == nil {
		t.Errorf("more than %d frames were read", framesMax)
	}
}

// TestFramesTakeNoMemory: what a message claims costs nothing, only what it is.
func TestFramesTakeNoMemory(t *testing.T) {
	length := func(n uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, fieldFrames, protowire.BytesType), n)
	}
	data := func(n uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(nil, fieldData, protowire.BytesType), n)
	}
	for name, wire := range map[string][]byte{
		"frames":      bytes.Repeat([]byte{byte(fieldFrames<<3 | 2), 0}, messageBytesMax/2),
		"empty data":  append(length(messageBytesMax-8), bytes.Repeat([]byte{byte(fieldData<<3 | 2), 0}, messageBytesMax/2-4)...),
		"empty refs":  append(length(messageBytesMax-8), bytes.Repeat([]byte{byte(fieldRef<<3 | 2), 0}, messageBytesMax/2-4)...),
		"long frame":  length(1 << 62),
		"long data":   append(length(messageBytesMax), data(1<<62)...),
		"other field": append(protowire.AppendTag(nil, 77, protowire.BytesType), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f),
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f := new(frames)
		_ = newCodec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(wire)}, f)
		runtime.ReadMemStats(&after)
		if took := after.TotalAlloc - before.TotalAlloc; took > messageBytesMax/2 {
			t.Errorf("%s: %d octets took %d of memory", name, len(wire), took)
		}
	}
}

// A countingPool counts what comes back to it.
type countingPool struct {
	t    *testing.T
	back map[*byte]int
}

func (p *countingPool) Get(n int) *[]byte { b := make([]byte, n); return &b }
func (p *countingPool) Put(b *[]byte) {
	first := &(*b)[0]
	if p.back[first]++; p.back[first] > 1 {
		p.t.Error("memory came back twice")
	}
}

// TestFramesGiveTheirMemoryBack, once, and not before they are freed: gRPC gives
// up its own share as soon as Unmarshal returns.
func TestFramesGiveTheirMemoryBack(t *testing.T) {
	random := rand.New(rand.NewPCG(10, 11))
	for _, broken := range []bool{false, true} {
		pool := &countingPool{t: t, back: make(map[*byte]int)}
		sent := &frames{list: []frame{{number: 1, ref: []byte("r"), data: [][]byte{bytes.Repeat([]byte("x"), 30<<10)}, last: true}}}
		wire := sent.marshal().Materialize()
		if broken {
			wire = wire[:len(wire)-1]
		}
		var buffers mem.BufferSlice
		for len(wire) > 0 {
			n := min(len(wire), 2000+random.IntN(3000))
			piece := bytes.Clone(wire[:n])
			buffers, wire = append(buffers, mem.NewBuffer(&piece, pool)), wire[n:]
		}
		got := new(frames)
		err := newCodec().Unmarshal(buffers, got)
		if (err != nil) != broken {
			t.Fatal(err)
		}
		if len(pool.back) > 0 {
			t.Errorf("broken=%v: memory came back that is still the caller's", broken)
		}
		buffers.Free()
		if !broken {
			if len(pool.back) > 0 {
				t.Error("memory came back that the frames lie in")
			}
			if !proto.Equal(got.generated(), sent.generated()) {
				t.Error("the frames are not what was sent")
			}
			got.free()
		}
		large := 0
		for _, b := range buffers {
			if _, small := b.(mem.SliceBuffer); !small {
				large++
			}
		}
		if len(pool.back) != large || large == 0 {
			t.Errorf("broken=%v: %d of %d pieces came back", broken, len(pool.back), large)
		}
	}
}

func FuzzFrames(f *testing.F) {
	random := rand.New(rand.NewPCG(12, 13))
	for range 10 {
		sent := randomFrames(random)
		if len(sent.list) > 3 {
			sent.list = sent.list[:3]
		}
		f.Add(sent.marshal().Materialize(), uint64(1))
	}
	f.Fuzz(func(t *testing.T, wire []byte, seed uint64) {
		agree(t, wire, rand.New(rand.NewPCG(seed, 0)))
	})
}
