package cluster

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Leads reports whether this node believes that it leads.
func (m *Member) Leads() bool { return m.node.IsLeader() }

// Mint draws an id for a message that this node composes.
func (m *Member) Mint() (mail.QueueID, error) { return m.mint() }

// Issue has a report queued and what it is about settled, in one entry. The body of the
// report, nil where none is made, is not the caller's any more; its id is
// report.Report.Body.ID, and the rest of that reference is filled in here.
//
// It asks again as long as ctx allows: the report is found by its id. Errors are those
// of Do.
func (m *Member) Issue(ctx context.Context, report fsm.IssueReport, body *mail.Body) (fsm.Result, error) {
	if !m.Understood(report) {
		return fsm.Result{}, fmt.Errorf("%w: %w", ErrNotAccepted, ErrNotUnderstood)
	}
	if body == nil {
		return m.Do(ctx, report)
	}
	ref := body.Ref(report.Report.Body.ID)
	report.Report.Body = ref
	release, err := m.spread(ctx, ref, body)
	if err != nil {
		return fsm.Result{}, err
	}
	defer release()
	for {
		got, err := m.attempt(ctx, fsm.Command{Node: m.name, Action: report}, &ref)
		if err == nil {
			return got.result, nil
		}
		if errors.Is(err, ErrTooLarge) {
			return fsm.Result{}, err
		}
		select {
		case <-ctx.Done():
			return fsm.Result{}, err
		case <-m.stopping:
			return fsm.Result{}, err
		case <-time.After(retryPause):
		}
	}
}
