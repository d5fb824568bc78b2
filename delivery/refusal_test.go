package delivery

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/delivery/smtpclient"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// refusals keeps what RefusedAlarm was told last.
type refusals struct {
	mu   sync.Mutex
	last *smtpclient.StageError
	n    int // times that it was told of one
}

func (r *refusals) tell(_ mail.Domain, e *smtpclient.StageError) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = e
	if e != nil {
		r.n++
	}
}

// standing returns the alarm's text, "" for none.
func (r *refusals) standing() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last == nil {
		return ""
	}
	return r.last.Error()
}

// Fault 39: a primary that blocks us, at its banner, to EHLO or to MAIL. No message
// is failed, an alarm says what it says, and ends when it takes us.
func TestAlarmWhenThePrimaryRefusesUs(t *testing.T) {
	for _, row := range []struct{ stage, reply, alarm string }{
		{deliverytest.Banner, "554 5.7.1 your address is blocked", "banner: 554 5.7.1 your address is blocked"},
		{deliverytest.Banner, "421 4.3.2 too many connections", "banner: 421 4.3.2 too many connections"},
		{deliverytest.Banner, "451 4.3.0 later", ""},
		{deliverytest.Banner, deliverytest.Drop, ""},
		{deliverytest.Hello, "550 5.7.1 go away", "EHLO: 550 5.7.1 go away"},
		{deliverytest.Mail, "550 5.7.1 your address is blocked", "MAIL: 550 5.7.1 your address is blocked"},
		{deliverytest.Mail, "530 5.7.0 STARTTLS first", "MAIL: 530 5.7.0 STARTTLS first"},
		{deliverytest.Mail, "552 5.3.4 too large", ""},
		{deliverytest.Mail, "451 4.3.0 later", ""},
		{deliverytest.Rcpt, "550 5.1.1 nobody", ""},
	} {
		for _, offered := range [][]string{extensions, nil} {
			t.Run(row.stage+" "+row.reply, func(t *testing.T) {
				var told refusals
				p := &deliverytest.Primary{Extensions: offered, Answer: at(row.stage, row.reply)}
				bubbleWith(t, p, nil, func(c *Config) { c.RefusedAlarm = told.tell }, func(c *cluster, a *Agent) {
					ids := c.acceptN(20)
					time.Sleep(time.Minute)
					if got := told.standing(); got != row.alarm {
						t.Errorf("alarm %q", got)
					}
					if n := c.states(ids)[fsm.RecipientHeld]; n > 0 && row.stage != deliverytest.Rcpt {
						t.Errorf("%d failed", n)
					}
					p.SetAnswer(nil)
					c.done(ids, 30*time.Minute)
					if got := told.standing(); got != "" {
						t.Errorf("alarm %q when it is over", got)
					}
				})
			})
		}
	}
}

// Single senders that the primary does not like are no alarm, however often they
// are tried.
func TestRefusedSendersAreNoAlarm(t *testing.T) {
	var told refusals
	p := &deliverytest.Primary{Extensions: extensions, Answer: func(stage, line string) string {
		if stage == deliverytest.Mail && (strings.Contains(line, "<sender3@") || strings.Contains(line, "<sender7@")) {
			return "553 5.1.8 no such domain"
		}
		return ""
	}}
	bubbleWith(t, p, nil, func(c *Config) { c.RefusedAlarm = told.tell }, func(c *cluster, a *Agent) {
		ids := c.acceptN(20)
		time.Sleep(6 * time.Hour)
		if n := c.states(ids)[fsm.RecipientDelivered]; n != 18 || told.n != 0 || c.message(ids[3]).Parts[0].Attempts < 4 {
			t.Errorf("%d delivered, told %d times, %d attempts", n, told.n, c.message(ids[3]).Parts[0].Attempts)
		}
	})
}
