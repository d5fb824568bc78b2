package smtpd

import (
	"context"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd/gate"
)

// etrnPatience is how long ETRN may take: the queue has to commit it.
const etrnPatience = 15 * time.Second

// callerOf is who speaks on a connection.
func callerOf(c *gate.Conn) Caller {
	who := Caller{Address: c.Client()}
	who.Key, who.HasKey = c.ClientKey()
	return who
}

// turn is ETRN (RFC 1985): a primary that has come back has its mail delivered at
// once, by a connection that we open to where its domain's mail goes. So nothing goes
// to who asks. Of the options "@", with subdomains, and "#", a queue by another name,
// neither is offered.
func (s *Server) turn(c *gate.Conn, argument string) mail.Reply {
	if strings.HasPrefix(argument, "@") || strings.HasPrefix(argument, "#") {
		return replyTurnOption()
	}
	d, err := mail.ParseDomain(argument)
	if err != nil {
		return replyTurnSyntax()
	}
	ctx, cancel := context.WithTimeout(s.base, etrnPatience)
	defer cancel()
	who := callerOf(c)
	turned, err := s.queue.Turn(ctx, who, d)
	log := s.log.With("client", c.Client(), "domain", d)
	if who.HasKey { // as --caller-pin wants it
		log = log.With("key", hex.EncodeToString(who.Key[:]))
	}
	switch {
	case errors.Is(err, ErrTurnRefused):
		log.Info("ETRN refused", "err", err)
		return replyTurnRefused(d)
	case err != nil:
		log.Warn("ETRN not done", "err", err)
		return replyTurnFailed(d)
	}
	log.Info("ETRN", "waiting", turned.Waiting, "underway", turned.Underway)
	return replyTurn(d, turned)
}
