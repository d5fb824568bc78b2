package smtpd_test

import (
	"slices"
	"strings"
	"testing"
)

// TestREQUIRETLSIsNotOffered: what is offered under TLS is known by name, and REQUIRETLS
// (RFC 8689) is not among it, since nobody could hold to it on the way to the primary. Who
// asks for it all the same is refused, and does not think that it was heeded.
func TestREQUIRETLSIsNotOffered(t *testing.T) {
	_, addr := start(t, newFakeQueue(), withTLS(t))
	c := dial(t, addr)
	c.hello()
	c.startTLS()
	c.send("EHLO client.example\r\n")
	var offered []string
	for {
		line := c.line()
		if len(line) < 4 {
			t.Fatalf("EHLO is answered %q", line)
		}
		offered = append(offered, line[4:])
		if line[3] != '-' {
			break
		}
	}
	for _, one := range offered[1:] {
		word, _, _ := strings.Cut(one, " ")
		if !slices.Contains([]string{"PIPELINING", "SIZE", "8BITMIME", "SMTPUTF8", "DSN", "ETRN", "ENHANCEDSTATUSCODES"}, word) {
			t.Errorf("offered under TLS: %s", one)
		}
	}
	c.do("MAIL FROM:<a@sender.example> REQUIRETLS", "555 5.5.4")
}
