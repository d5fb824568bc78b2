package smtpd

import (
	"crypto/tls"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd/gate"
)

// trace says what the Received field will say of this transaction. The time
// is added at the final dot.
func trace(c *gate.Conn, hostname string, utf8 bool) mail.Trace {
	name, extended := c.Hello()
	t := mail.Trace{Hello: sanitiseHello(name), Client: c.Client(), Node: hostname}
	state, encrypted := c.TLS()
	if encrypted {
		t.TLS = strings.ReplaceAll(tls.VersionName(state.Version), " ", "") + " " + tls.CipherSuiteName(state.CipherSuite)
	}
	switch { // RFC 3848, RFC 6531 section 4.3
	case !extended:
		t.Protocol = "SMTP"
	case utf8 && encrypted:
		t.Protocol = "UTF8SMTPS"
	case utf8:
		t.Protocol = "UTF8SMTP"
	case encrypted:
		t.Protocol = "ESMTPS"
	default:
		t.Protocol = "ESMTP"
	}
	return t
}

// helloBytesMax bounds the name in the trace.
const helloBytesMax = 255

// sanitiseHello keeps what a host name or an address literal is made of; all
// else becomes "?", so that no HELO can write into our header.
func sanitiseHello(name string) string {
	clean := strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', strings.ContainsRune("-._:[]", r):
			return r
		}
		return '?'
	}, name)
	return clean[:min(len(clean), helloBytesMax)]
}
