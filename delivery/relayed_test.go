package delivery

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/deliverytest"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// TestSuccessIsOursToReport: who asked to hear of success hears it from us where the
// next hop cannot be told that he did (RFC 3461 section 5.2.2 b), and nobody else does.
func TestSuccessIsOursToReport(t *testing.T) {
	plain := slices.DeleteFunc(slices.Clone(extensions), func(e string) bool { return e == "DSN" })
	for _, test := range []struct {
		offers []string
		bounce fsm.BouncePolicy
		notify mail.Notify
		want   fsm.ReportKind
	}{
		{plain, fsm.BounceAlways, mail.NotifySuccess, fsm.ReportRelayed},
		{plain, fsm.BounceAlways, mail.NotifySuccess | mail.NotifyFailure, fsm.ReportRelayed},
		{plain, fsm.BounceAlways, mail.NotifyFailure, 0},
		{plain, fsm.BounceAlways, 0, 0},
		{plain, fsm.BounceAligned, mail.NotifySuccess, 0},
		{plain, fsm.BounceHold, mail.NotifySuccess, 0},
		{extensions, fsm.BounceAlways, mail.NotifySuccess, 0},
	} {
		t.Run(fmt.Sprintf("%v %v notify %d", test.offers, test.bounce, test.notify), func(t *testing.T) {
			p := &deliverytest.Primary{Extensions: test.offers}
			bubbleWith(t, p, func(c *cluster) {
				c.apply("leader", fsm.PutDomain{Domain: fsm.Domain{Name: testDomain, Targets: []fsm.Target{{Host: "192.0.2.10", Port: 25}}, Bounce: test.bounce}})
			}, nil, func(c *cluster, _ *Agent) {
				path, _ := mail.ParseForwardPath("bob@"+string(testDomain), false)
				id := c.acceptFor(mail.Envelope{Recipients: []mail.Recipient{{Path: path, Domain: testDomain, Notify: test.notify}}}, "x\r\n")
				until(t, time.Minute, "delivered", func() bool { return c.message(id).State() == fsm.RecipientDelivered })
				if got := c.message(id).Recipients[0].Report; got != test.want {
					t.Errorf("owes a report of its %v, want %v", got, test.want)
				}
			})
		})
	}
}
