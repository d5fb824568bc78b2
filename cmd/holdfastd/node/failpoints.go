package node

import (
	"context"

	"github.com/holdfast-mx/holdfast/cluster"
	"github.com/holdfast-mx/holdfast/cluster/peer"
	"github.com/holdfast-mx/holdfast/delivery"
	"github.com/holdfast-mx/holdfast/deploy/controls"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// The failpoints between the rooms.

// An observedQueue is what a deliveryQueue does, with failpoints around it.
type observedQueue struct {
	deliveryQueue
	failpoint controls.Failpoint
}

func (q observedQueue) Pull(ctx context.Context, w delivery.Wish) (delivery.Lease, error) {
	l, err := q.deliveryQueue.Pull(ctx, w)
	if len(l.Messages) > 0 {
		q.failpoint.At("lease: received")
	}
	return l, err
}

func (q observedQueue) Renew(ctx context.Context, token fsm.Token, request fsm.RequestID, begun []mail.QueueID) ([]mail.QueueID, error) {
	stop, err := q.deliveryQueue.Renew(ctx, token, request, begun)
	if err == nil {
		q.failpoint.At("lease: renewed")
	}
	return stop, err
}

func (q observedQueue) Report(ctx context.Context, token fsm.Token, outcomes []fsm.MessageOutcomes) error {
	q.failpoint.At("outcome: known")
	err := q.deliveryQueue.Report(ctx, token, outcomes)
	if err == nil {
		q.failpoint.At("outcome: recorded")
	}
	return err
}

// An observedBackend is what a cluster.Backend does, with failpoints around it.
type observedBackend struct {
	*cluster.Backend
	failpoint controls.Failpoint
}

func (b observedBackend) StoreBodies(bodies []peer.Arrived, taken func(places []int)) []error {
	errs := b.Backend.StoreBodies(bodies, func(places []int) {
		taken(places)
		b.failpoint.At("push: bodies taken")
	})
	b.failpoint.At("push: bodies stored")
	return errs
}

func (b observedBackend) Propose(ctx context.Context, from string, proposals []peer.Proposal) []peer.Outcome {
	b.failpoint.At("leader: asked")
	outcomes := b.Backend.Propose(ctx, from, proposals)
	b.failpoint.At("leader: done")
	return outcomes
}

func (b observedBackend) Pull(ctx context.Context, r peer.PullRequest) (peer.PullReply, error) {
	reply, err := b.Backend.Pull(ctx, r)
	if len(reply.Messages) > 0 {
		b.failpoint.At("lease: granted")
	}
	return reply, err
}
