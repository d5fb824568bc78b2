package smtpclient

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// A Client is who gave us a message, as the peer is to see it.
type Client struct {
	Address  netip.Addr // invalid: not known
	Hello    string     // what it said in EHLO; "" is not known
	Extended bool       // it said EHLO and not HELO
}

// OnBehalf has the peer take what follows for another client's, by XCLIENT: an extension
// that Postfix has and offers to those alone whom it lets. Each attribute that it offers
// and that is not known is said to be so; else it would be that of the client before.
// After it the conversation begins anew, as far as EHLO.
//
// A reply that is not positive is the peer's verdict on the client, at XCLIENT or at the
// EHLO behind it. The peer then may not know any more who speaks: the connection is
// closed. An error is a *StageError.
func (c *Conn) OnBehalf(ctx context.Context, of Client) (mail.Reply, error) {
	end := c.guard(ctx)
	defer end()
	if c.inData || c.ahead != nil {
		return mail.Reply{}, c.broken(StageXClient, fmt.Errorf("%w: a transaction is open", ErrClosed))
	}
	if c.stale {
		if _, err := c.exchange(StageXClient, c.timeouts.Hello, "RSET"); err != nil {
			return mail.Reply{}, err
		}
		c.stale = false
	}
	line, ok := of.command(strings.Fields(strings.ToUpper(c.extensions["XCLIENT"])))
	if !ok {
		return mail.Reply{}, c.broken(StageXClient, fmt.Errorf("%w: no address can be said", ErrReply))
	}
	reply, err := c.exchange(StageXClient, c.timeouts.Hello, line)
	switch {
	case err != nil:
		return mail.Reply{}, err
	case reply.Code == 220:
	case reply.Transient() || reply.Permanent():
		c.Abort()
		return reply.Reply, nil
	default:
		return mail.Reply{}, c.fail(&StageError{Stage: StageXClient, Reply: reply.Reply, Err: fmt.Errorf("%w: XCLIENT", ErrReply)})
	}
	reply, err = c.exchange(StageHello, c.timeouts.Hello, "EHLO "+c.hello)
	if err != nil {
		return mail.Reply{}, err
	}
	if !reply.Positive() {
		c.Abort()
		return reply.Reply, nil
	}
	c.learn(reply)
	return reply.Reply, nil
}

// command writes the XCLIENT command with the attributes that are offered. Without an
// address there is nothing to say.
func (of Client) command(offered []string) (string, bool) {
	const unknown = "[UNAVAILABLE]"
	address, hello, protocol := unknown, unknown, "SMTP"
	if a := of.Address.Unmap().WithZone(""); a.Is4() {
		address = a.String()
	} else if a.Is6() {
		address = "IPV6:" + a.String()
	}
	if of.Hello != "" {
		hello = xtext(of.Hello)
	}
	if of.Extended {
		protocol = "ESMTP"
	}
	var b strings.Builder
	b.WriteString("XCLIENT")
	for _, one := range []struct{ name, value string }{
		// No name that we looked up: the peer would believe it.
		{"NAME", unknown}, {"ADDR", address}, {"PORT", unknown}, {"PROTO", protocol}, {"HELO", hello}, {"LOGIN", unknown},
	} {
		if slices.Contains(offered, one.name) {
			b.WriteString(" " + one.name + "=" + one.value)
		}
	}
	return b.String(), slices.Contains(offered, "ADDR")
}

// helloBytesMax is how much of what a client called itself is passed on.
const helloBytesMax = 255

// xtext is RFC 3461 section 4: what could end the value, or the line, is encoded.
func xtext(s string) string {
	var b strings.Builder
	for i := range min(len(s), helloBytesMax) {
		if c := s[i]; c <= ' ' || c > '~' || c == '+' || c == '=' {
			fmt.Fprintf(&b, "+%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
