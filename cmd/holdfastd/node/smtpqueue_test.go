package node

import (
	"errors"
	"fmt"
	"testing"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/smtpd"
)

// A wrong row here is a 451 for a message that is delivered, or a 250 for none.
func TestSubmitErrors(t *testing.T) {
	for _, c := range []struct {
		err, want error
	}{
		{nil, nil},
		{cluster.ErrNotAccepted, smtpd.ErrNotAccepted},
		{fmt.Errorf("%w: %w", cluster.ErrNotAccepted, cluster.ErrTooLarge), smtpd.ErrTooManyRecipients},
		{cluster.ErrOutcomeUnknown, smtpd.ErrOutcomeUnknown},
		{fmt.Errorf("%w: %w", cluster.ErrOutcomeUnknown, cluster.ErrNotAccepted), smtpd.ErrOutcomeUnknown},
		{fmt.Errorf("%w: %w", cluster.ErrNotAccepted, cluster.ErrOutcomeUnknown), smtpd.ErrOutcomeUnknown},
		{errors.New("something nobody thought of"), smtpd.ErrOutcomeUnknown},
	} {
		got := submitError(c.err)
		if !errors.Is(got, c.want) || (got == nil) != (c.want == nil) {
			t.Errorf("%v: %v, want %v", c.err, got, c.want)
		}
		for _, certain := range []error{smtpd.ErrNotAccepted, smtpd.ErrTooManyRecipients} {
			if c.want == smtpd.ErrOutcomeUnknown && errors.Is(got, certain) {
				t.Errorf("%v: passes for %v", c.err, certain)
			}
		}
	}
}
