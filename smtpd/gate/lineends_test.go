package gate

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// naive is lineEnds, octet by octet, on the whole input: the message, and what
// is left behind the end mark; false when there is none.
func naive(in []byte) (message, rest []byte, ok bool) {
	afterCRLF := true // the beginning counts
	for i := 0; i < len(in); i++ {
		if afterCRLF && in[i] == '.' {
			if i+2 < len(in) && in[i+1] == '\r' && in[i+2] == '\n' {
				return message, in[i+3:], true
			}
			afterCRLF = false
			continue
		}
		afterCRLF = false
		switch {
		case in[i] == '\r' && i+1 < len(in) && in[i+1] == '\n':
			message = append(message, '\r', '\n')
			i++
			afterCRLF = true
		case in[i] == '\r':
			message = append(message, ' ')
		case in[i] == '\n':
			message = append(message, '\r', '\n')
		default:
			message = append(message, in[i])
		}
	}
	return nil, nil, false
}

// scan runs lineEnds over in, with the ends of reads where cut says.
func scan(in []byte, cut func(left int) int) (message, rest []byte, ok bool) {
	s := lineEnds{lineMax: 1 << 20}
	var buf []byte
	for {
		piece, used, lf, end := s.next(buf)
		message = append(message, piece...)
		buf = buf[used:]
		if lf {
			message = append(message, '\r', '\n')
		}
		if end {
			return message, append(buf, in...), true
		}
		if used == 0 {
			if len(in) == 0 {
				return nil, nil, false
			}
			n := cut(len(in))
			buf = append(bytes.Clone(buf), in[:n]...)
			in = in[n:]
		}
	}
}

// TestLineEndsAreAsOctetByOctet compares with the naive twin, over random
// mixes of what matters and random ends of reads.
func TestLineEndsAreAsOctetByOctet(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := bytes.Join(rapid.SliceOfN(rapid.SampledFrom([][]byte{
			[]byte("\r"), []byte("\n"), []byte("."), []byte("a"), []byte("\r\n"), []byte("\r\n."), []byte("\x00"), []byte("text of a line"),
		}), 0, 60).Draw(t, "in"), nil)
		in = append(in, "\r\n.\r\nQUIT\r\n"...)
		wantMessage, wantRest, wantOK := naive(in)
		seed := rapid.Uint64().Draw(t, "seed")
		r := rand.New(rand.NewPCG(seed, 0))
		sizeMax := rapid.SampledFrom([]int{1, 2, 3, 7, 1000}).Draw(t, "size")
		message, rest, ok := scan(bytes.Clone(in), func(left int) int { return min(left, 1+r.IntN(sizeMax)) })
		if ok != wantOK || !bytes.Equal(message, wantMessage) || !bytes.Equal(rest, wantRest) {
			t.Fatalf("%q gave %q, rest %q, %v; want %q, rest %q, %v", in, message, rest, ok, wantMessage, wantRest, wantOK)
		}
	})
}

func BenchmarkLineEnds(b *testing.B) {
	in := bytes.Repeat([]byte("A line of seventy-six octets, as base64 and most of the writers of mail have\r\n"), bodyInputBytes/78)
	b.SetBytes(int64(len(in)))
	for b.Loop() {
		s := lineEnds{lineMax: 1 << 20}
		if _, used, _, _ := s.next(in); used != len(in) {
			b.Fatal(used)
		}
	}
}
