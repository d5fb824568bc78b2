package peer

import (
	"errors"
	"fmt"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
)

// frames is a peerpb.PushFrames that does not copy the octets of bodies: what is
// sent is written from where it lies, and what is received is read where the
// connection put it.
type frames struct {
	list []frame
	// received holds the memory that the frames' data lies in, until free.
	received mem.BufferSlice
}

// A frame is a peerpb.PushFrame.
type frame struct {
	number    uint64
	ref       []byte
	data      [][]byte // the octets, in pieces
	last      bool
	abandoned bool
	tellTaken bool
	checksum  *mail.Checksum // nil: the octets are to be hashed
}

// octets returns how many octets the frame carries.
func (f *frame) octets() (n int) {
	for _, d := range f.data {
		n += len(d)
	}
	return n
}

// free gives the memory of received frames back. Their data must not be used
// any more.
func (f *frames) free() {
	f.received.Free()
	f.list, f.received = nil, nil
}

// A codec is gRPC's own for protocol buffers, but for frames.
type codec struct{ proto encoding.CodecV2 }

func newCodec() codec { return codec{encoding.GetCodecV2(proto.Name)} }

// Name says that all messages are protocol buffers, frames among them.
func (codec) Name() string { return proto.Name }

func (c codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*frames)
	if !ok {
		return c.proto.Marshal(v)
	}
	return f.marshal(), nil
}

func (c codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*frames)
	if !ok {
		return c.proto.Unmarshal(data, v)
	}
	data.Ref()
	f.received = data
	if err := f.unmarshal(data); err != nil {
		f.free()
		return err
	}
	return nil
}

// The fields of PushFrames and PushFrame in peer.proto.
const (
	fieldFrames    protowire.Number = 1
	fieldNumber    protowire.Number = 1
	fieldRef       protowire.Number = 2
	fieldData      protowire.Number = 3
	fieldLast      protowire.Number = 4
	fieldAbandoned protowire.Number = 5
	fieldTellTaken protowire.Number = 6
	fieldChecksum  protowire.Number = 7
)

// smallDataBytes is up to which length octets are copied rather than sent as a
// piece of their own, which costs an allocation.
const smallDataBytes = 512

// marshal writes the fields of each frame and leaves the octets where they are.
func (f *frames) marshal() mem.BufferSlice {
	var out mem.BufferSlice
	var head []byte // not yet in out
	for i := range f.list {
		one := &f.list[i]
		fields := one.fields()
		octets := one.octets()
		size := len(fields)
		if octets > 0 {
			size += protowire.SizeTag(fieldData) + protowire.SizeBytes(octets)
		}
		head = protowire.AppendTag(head, fieldFrames, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(size))
		head = append(head, fields...)
		if octets == 0 {
			continue
		}
		head = protowire.AppendTag(head, fieldData, protowire.BytesType)
		head = protowire.AppendVarint(head, uint64(octets))
		for _, d := range one.data {
			if len(d) <= smallDataBytes {
				head = append(head, d...)
				continue
			}
			out = append(out, mem.SliceBuffer(head), mem.SliceBuffer(d))
			head = nil
		}
	}
	if len(head) > 0 {
		out = append(out, mem.SliceBuffer(head))
	}
	return out
}

// fields are the fields of a frame but for its data, which comes last.
func (f *frame) fields() []byte {
	b := make([]byte, 0, 80)
	b = protowire.AppendTag(b, fieldNumber, protowire.VarintType)
	b = protowire.AppendVarint(b, f.number)
	if len(f.ref) > 0 {
		b = protowire.AppendTag(b, fieldRef, protowire.BytesType)
		b = protowire.AppendBytes(b, f.ref)
	}
	if f.last {
		b = protowire.AppendTag(b, fieldLast, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	if f.abandoned {
		b = protowire.AppendTag(b, fieldAbandoned, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	if f.tellTaken {
		b = protowire.AppendTag(b, fieldTellTaken, protowire.VarintType)
		b = protowire.AppendVarint(b, 1)
	}
	if f.checksum != nil {
		b = protowire.AppendTag(b, fieldChecksum, protowire.Fixed32Type)
		b = protowire.AppendFixed32(b, uint32(*f.checksum))
	}
	return b
}

var errFrames = errors.New("malformed push frames")

// unmarshal reads frames. Fields that it does not know are passed over.
func (f *frames) unmarshal(data mem.BufferSlice) error {
	r := &pieces{rest: data}
	r.next()
	for r.left() {
		number, kind, err := r.tag()
		if err != nil {
			return err
		}
		if number != fieldFrames || kind != protowire.BytesType {
			if err := r.pass(kind); err != nil {
				return err
			}
			continue
		}
		size, err := r.varint()
		if err != nil {
			return err
		}
		one, err := r.frame(size)
		if err != nil {
			return err
		}
		f.list = append(f.list, one)
		if len(f.list) > framesMax {
			return fmt.Errorf("%w: more than %d of them", errFrames, framesMax)
		}
	}
	return nil
}

// pieces reads a message that lies in several pieces of memory.
type pieces struct {
	here []byte // what is left of the piece being read
	rest mem.BufferSlice
	read uint64
}

// next goes on to the next piece when this one is used up.
func (r *pieces) next() {
	for len(r.here) == 0 && len(r.rest) > 0 {
		r.here, r.rest = r.rest[0].ReadOnlyData(), r.rest[1:]
	}
}

func (r *pieces) left() bool {
	r.next()
	return len(r.here) > 0
}

func (r *pieces) octet() (byte, error) {
	if !r.left() {
		return 0, fmt.Errorf("%w: cut short", errFrames)
	}
	b := r.here[0]
	r.here = r.here[1:]
	r.read++
	return b, nil
}

// varintBytesMax is the longest varint of a protocol buffer.
const varintBytesMax = 10

func (r *pieces) varint() (uint64, error) {
	var v uint64
	for shift := 0; shift < 7*varintBytesMax; shift += 7 {
		b, err := r.octet()
		if err != nil {
			return 0, err
		}
		v |= uint64(b&0x7f) << shift
		if b < 0x80 && shift == 7*(varintBytesMax-1) && b > 1 {
			break // more than 64 bits
		}
		if b < 0x80 {
			return v, nil
		}
	}
	return 0, fmt.Errorf("%w: varint", errFrames)
}

func (r *pieces) fixed32() (v uint32, err error) {
	for shift := 0; shift < 32; shift += 8 {
		b, err := r.octet()
		if err != nil {
			return 0, err
		}
		v |= uint32(b) << shift
	}
	return v, nil
}

func (r *pieces) tag() (protowire.Number, protowire.Type, error) {
	v, err := r.varint()
	if err != nil {
		return 0, 0, err
	}
	number, kind := protowire.DecodeTag(v)
	if number < protowire.MinValidNumber || number > protowire.MaxValidNumber {
		return 0, 0, fmt.Errorf("%w: field %d", errFrames, number)
	}
	return number, kind, nil
}

// take returns the next n octets where they lie.
func (r *pieces) take(n uint64) ([][]byte, error) {
	var out [][]byte
	for n > 0 {
		if !r.left() {
			return nil, fmt.Errorf("%w: cut short", errFrames)
		}
		k := min(n, uint64(len(r.here)))
		out = append(out, r.here[:k:k])
		r.here = r.here[k:]
		r.read += k
		n -= k
	}
	return out, nil
}

// pass reads a field of no interest.
func (r *pieces) pass(kind protowire.Type) error {
	var n uint64
	var err error
	switch kind {
	case protowire.VarintType:
		_, err = r.varint()
	case protowire.Fixed32Type:
		n = 4
	case protowire.Fixed64Type:
		n = 8
	case protowire.BytesType:
		n, err = r.varint()
	default:
		err = fmt.Errorf("%w: type %d", errFrames, kind)
	}
	if err == nil {
		_, err = r.take(n)
	}
	return err
}

// frame reads a frame of that many octets.
func (r *pieces) frame(size uint64) (frame, error) {
	var f frame
	if size > messageBytesMax {
		return f, fmt.Errorf("%w: a frame of %d octets", errFrames, size)
	}
	for end := r.read + size; r.read < end; {
		number, kind, err := r.tag()
		if err != nil {
			return f, err
		}
		switch {
		case kind == protowire.VarintType && (number == fieldNumber || number == fieldLast || number == fieldAbandoned || number == fieldTellTaken):
			v, err := r.varint()
			if err != nil {
				return f, err
			}
			switch number {
			case fieldNumber:
				f.number = v
			case fieldLast:
				f.last = v != 0
			case fieldAbandoned:
				f.abandoned = v != 0
			case fieldTellTaken:
				f.tellTaken = v != 0
			}
		case kind == protowire.Fixed32Type && number == fieldChecksum:
			sum, err := r.fixed32()
			if err != nil {
				return f, err
			}
			f.checksum = new(mail.Checksum(sum))
		case kind == protowire.BytesType && (number == fieldRef || number == fieldData):
			n, err := r.varint()
			if err != nil {
				return f, err
			}
			octets, err := r.take(n)
			if err != nil {
				return f, err
			}
			if number == fieldData {
				f.data = octets
				break
			}
			f.ref = nil
			for _, p := range octets {
				f.ref = append(f.ref, p...)
			}
		default:
			if err := r.pass(kind); err != nil {
				return f, err
			}
		}
		if r.read > end {
			return f, fmt.Errorf("%w: a field is longer than its frame", errFrames)
		}
	}
	return f, nil
}
