package smtpclient

import (
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
)

// Over real sockets, in the clear and under TLS: what the peer says between its
// 354 and the dot, and that it has gone, is seen before the dot goes out. A peer
// that waits for the dot gets it.
//
// It holds this defect: a primary that said 250 in the middle of the content and refused
// the dot behind it had its message taken for delivered: it was lost.
func TestRegressionDotLooksAtTheNetwork(t *testing.T) {
	for name, row := range map[string]struct {
		say   string // before the dot
		leave bool
	}{
		"waits":         {},
		"says 250":      {say: "250 2.0.0 taken"},
		"says 451":      {say: "451 4.3.0 later"},
		"goes":          {leave: true},
		"says and goes": {say: "421 4.3.2 bye", leave: true},
	} {
		for _, secure := range []bool{false, true} {
			if secure {
				name += ", TLS"
			}
			t.Run(name, func(t *testing.T) {
				p := &deliverytest.Primary{Extensions: allExtensions}
				if secure {
					p.TLS = certificate(t)
				}
				asked, said := make(chan struct{}), make(chan string)
				p.Answer = func(stage, _ string) string {
					if stage != deliverytest.Body {
						return ""
					}
					close(asked)
					return <-said
				}
				listener, err := net.Listen("tcp", "127.0.0.1:0")
				if err != nil {
					t.Fatal(err)
				}
				defer listener.Close()
				served := make(chan struct{})
				go func() {
					defer close(served)
					if server, err := listener.Accept(); err == nil {
						p.Serve(server)
					}
				}()
				client, err := net.Dial("tcp", listener.Addr().String())
				if err != nil {
					t.Fatal(err)
				}
				c, err := Open(t.Context(), client, Options{Hello: "node.test", TLS: &tls.Config{InsecureSkipVerify: true}})
				if err != nil {
					t.Fatal(err)
				}
				defer func() { <-served }()
				defer c.Abort()
				if answer, err := c.Begin(t.Context(), plain(t)); err != nil || !answer.Open {
					t.Fatal(answer, err)
				}
				// The first block of the content goes out, the rest with the dot.
				if err := c.Body(t.Context(), nil, strings.NewReader(strings.Repeat("0123456789abcdef\r\n", 8_000))); err != nil {
					t.Fatal(err)
				}
				<-asked
				if readable(client) {
					t.Error("readable before anything was said")
				}
				switch {
				case row.say == "" && row.leave:
					said <- deliverytest.Drop
				case row.leave:
					said <- row.say
				case row.say != "":
					said <- deliverytest.Unasked(row.say)
				default:
					said <- ""
				}
				if row.say == "" && !row.leave {
					if reply, err := c.Dot(t.Context()); err != nil || reply.Code != 250 || len(p.Received()) != 1 {
						t.Errorf("%v %v, %d received", reply, err, len(p.Received()))
					}
					return
				}
				for start := time.Now(); !readable(client); time.Sleep(time.Millisecond) {
					if time.Since(start) > 10*time.Second {
						t.Fatal("never readable")
					}
				}
				if _, err := c.Dot(t.Context()); err == nil || errors.Is(err, ErrNoReply) || c.Usable() {
					t.Errorf("%v, usable %v", err, c.Usable())
				}
				c.Abort()
				<-served
				if n := len(p.Received()); n != 0 {
					t.Errorf("%d dots", n)
				}
			})
		}
	}
}
