package load

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Sizes says how large the messages of a run are.
type Sizes string

const (
	Size4K  Sizes = "4k"
	Size64K Sizes = "64k"
	Size1M  Sizes = "1m"
	Size25M Sizes = "25m"
	// Mix is 50 % of 4 to 16 KiB, 35 % to 100 KiB, 13 % to 1 MiB and 2 % to
	// 10 MiB, uniform within each class.
	Mix Sizes = "mix"
)

// AllSizes lists the values of Sizes.
func AllSizes() []Sizes { return []Sizes{Size4K, Size64K, Size1M, Size25M, Mix} }

const (
	kib = 1 << 10
	mib = 1 << 20
)

// draw returns the size of the next message.
func (s Sizes) draw(r *rand.Rand) int {
	switch s {
	case Size4K:
		return 4 * kib
	case Size64K:
		return 64 * kib
	case Size1M:
		return mib
	case Size25M:
		return 25 * mib
	}
	between := func(low, high int) int { return low + r.IntN(high-low+1) }
	switch p := r.IntN(100); {
	case p < 50:
		return between(4*kib, 16*kib)
	case p < 85:
		return between(16*kib, 100*kib)
	case p < 98:
		return between(100*kib, mib)
	default:
		return between(mib, 10*mib)
	}
}

// The pool is lines as attachments have them: 76 characters of base64 and CRLF.
// No line begins with a dot.
const (
	lineBytes = 78
	poolLines = 64 * kib // about 5 MB
)

// newPool makes the pool.
func newPool(seed uint64) []byte {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	r := rand.New(rand.NewPCG(seed, 0x6c6f6164))
	pool := make([]byte, 0, lineBytes*poolLines)
	for range poolLines {
		for n := 0; n < lineBytes-2; n += 4 {
			v := r.Uint32()
			pool = append(pool, alphabet[v&63], alphabet[v>>8&63], alphabet[v>>16&63], alphabet[v>>24&63])
		}
		pool = append(pool, '\r', '\n')
	}
	return pool
}

// A content writes the messages of one session. Not for concurrent use.
type content struct {
	pool []byte
	rand *rand.Rand
	run  string
	head []byte
	tail []byte
}

// endMark is the final dot.
const endMark = ".\r\n"

// next returns message n of exactly size octets, in pieces, without the final
// dot, which Write adds. The pieces are good until the next call.
func (c *content) next(n, size int) net.Buffers {
	h := c.head[:0]
	h = append(h, "Received: from client.example by sender.example with ESMTP;\r\n\tMon, 5 Jan 2026 09:00:00 +0000\r\nFrom: <sender@sender.example>\r\nTo: <user@example.test>\r\nSubject: load "...)
	h = strconv.AppendInt(h, int64(n), 10)
	h = append(h, "\r\nDate: Mon, 5 Jan 2026 09:00:00 +0000\r\nMessage-ID: <"...)
	h = append(h, c.run...)
	h = append(h, '.')
	h = strconv.AppendInt(h, int64(n), 10)
	h = append(h, "@sender.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n"...)
	h = fmt.Appendf(h, "%016x%016x\r\n%s.%d\r\n", c.rand.Uint64(), c.rand.Uint64(), c.run, n)
	c.head = h
	left := size - len(h)
	if left < 0 || left == 1 { // a line is two octets at the least
		panic(fmt.Sprintf("a message of %d octets has no room for its header of %d", size, len(h)))
	}
	pieces := net.Buffers{h}
	// Whole lines from anywhere in the pool, then a shorter one to the octet.
	lines := left / lineBytes
	if left%lineBytes == 1 && lines > 0 { // CRLF has no room there
		lines--
	}
	for at := c.rand.IntN(poolLines); lines > 0; at = 0 {
		k := min(lines, poolLines-at)
		pieces = append(pieces, c.pool[at*lineBytes:(at+k)*lineBytes])
		lines -= k
		left -= k * lineBytes
	}
	c.tail = c.tail[:0]
	for left > 0 { // one line, or two where a single octet was left over
		k := min(left, lineBytes)
		if left-k == 1 {
			k--
		}
		for range k - 2 {
			c.tail = append(c.tail, 'x')
		}
		c.tail = append(c.tail, '\r', '\n')
		left -= k
	}
	return append(pieces, c.tail)
}
