package smtpd_test

import (
	"fmt"
	"testing"

	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/deploy/controls/trial"
	"github.com/holdfast-mx/holdfast/smtpd"
)

// TestControlStrayCRPassed: what is stored has a CR only where a line ends, or the
// primary might see an end of the message that we did not.
func TestControlStrayCRPassed(t *testing.T) {
	trial.Run(t, controls.StrayCRPassed, func(t *testing.T, on controls.Set) error {
		q := newFakeQueue()
		_, addr := start(t, q, func(c *smtpd.Config) { c.Controls = on })
		c := dial(t, addr)
		c.toData()
		c.send("text\r.\r" + smuggled + "\r\n.\r\n")
		c.expect("250 2.0.0 queued as")
		if got, want := q.only(t).body, "text . "+smuggled+"\r\n"; got != want {
			return fmt.Errorf("stored %q", got)
		}
		return nil
	})
}
