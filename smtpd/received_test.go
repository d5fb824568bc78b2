package smtpd

import "testing"

// However a header is cut into pieces, its fields are counted the same.
func TestHopsInPieces(t *testing.T) {
	const (
		mark   = "(Holdfast 0123456789abcdef)"
		own    = "Received: from a by b.test\r\n\t" + mark + " with ESMTP id X; now\r\n"
		header = own + "Subject: x\r\n" + own + "\r\n" + own
	)
	for size := 1; size < len(own)+2; size++ {
		h := hops{mark: []byte(mark)}
		for rest := header; rest != ""; {
			n := min(size, len(rest))
			h.write([]byte(rest[:n]))
			rest = rest[n:]
		}
		if !h.looping() || h.own != 2 || h.count != 2 {
			t.Errorf("in pieces of %d: %d fields, %d of them own; want 2, 2", size, h.count, h.own)
		}
	}
}
