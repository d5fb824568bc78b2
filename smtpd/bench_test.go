package smtpd_test

import (
	"io"
	"strings"
	"testing"
)

// BenchmarkDATA sends messages over loopback through the gate and go-smtp to a
// queue that takes nothing but the digest. The client is in the figure.
func BenchmarkDATA(b *testing.B) {
	for _, size := range []struct {
		name  string
		lines int
		crypt bool
	}{{"4KiB", 4 << 10 / 78, false}, {"64KiB", 64 << 10 / 78, false}, {"1MiB", 1 << 20 / 78, false}, {"1MiB-TLS", 1 << 20 / 78, true}} {
		b.Run(size.name, func(b *testing.B) {
			q := newFakeQueue()
			q.discard = true
			_, addr := start(b, q, withTLS(b))
			c := dial(b, addr)
			c.hello()
			if size.crypt {
				c.startTLS()
				c.do("EHLO c.example", "250 ")
			}
			body := strings.Repeat(strings.Repeat("b", 76)+"\r\n", size.lines) + ".\r\n"
			b.SetBytes(int64(len(body)))
			for b.Loop() {
				if _, err := io.WriteString(c.conn, "MAIL FROM:<a@sender.example>\r\nRCPT TO:<b@example.test>\r\nDATA\r\n"); err != nil {
					b.Fatal(err)
				}
				c.expect("250 2.1.0")
				c.expect("250 2.1.5")
				c.expect("354 ")
				c.send(body)
				c.expect("250 2.0.0")
			}
		})
	}
}
