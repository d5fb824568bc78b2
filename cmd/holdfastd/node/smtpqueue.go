package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/smtpd"
)

// smtpQueue is the member as smtpd sees it.
type smtpQueue struct{ n *Node }

var errDraining = errors.New("this node is going down")

func (q smtpQueue) Ready() error {
	if err := q.n.Err(); err != nil {
		return err
	}
	if err := q.n.member.Room(); err != nil {
		return fmt.Errorf("%w: %w", smtpd.ErrDiskLow, err)
	}
	return q.n.member.Ready()
}

func (q smtpQueue) RelayDomain(ctx context.Context, d mail.Domain) (bool, error) {
	return q.n.member.RelayDomain(ctx, d)
}

func (q smtpQueue) PostmasterDomain() (mail.Domain, bool) { return q.n.member.FirstDomain() }

func (q smtpQueue) Submit(ctx context.Context, e mail.Envelope, b *mail.Body) (mail.QueueID, error) {
	q.n.seams.Failpoint.At("accept: body read")
	id, err := q.n.member.Submit(ctx, e, b)
	if err == nil {
		q.n.seams.Failpoint.At("accept: committed")
	}
	return id, submitError(err)
}

// submitError says in smtpd's words what a Submit ended with. What is not
// certain is unknown, first of all.
func submitError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, cluster.ErrOutcomeUnknown):
		return fmt.Errorf("%w: %w", smtpd.ErrOutcomeUnknown, err)
	case errors.Is(err, cluster.ErrTooLarge):
		return fmt.Errorf("%w: %w", smtpd.ErrTooManyRecipients, err)
	case errors.Is(err, cluster.ErrNotAccepted):
		return fmt.Errorf("%w: %w", smtpd.ErrNotAccepted, err)
	}
	return fmt.Errorf("%w: %w", smtpd.ErrOutcomeUnknown, err)
}

func (q smtpQueue) Settle(id mail.QueueID) { q.n.member.Settle(id) }
