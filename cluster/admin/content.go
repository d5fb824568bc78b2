package admin

import (
	"context"
	"errors"
	"fmt"
	"io"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// pieceBytesMax is how much of a message one answer has.
const pieceBytesMax = 1 << 20

// ReadMessage implements adminpb.AdminServiceServer. Whoever reads what others wrote
// leaves an audit line, one for each message.
func (s *Service) ReadMessage(ctx context.Context, r *adminpb.ReadMessageRequest) (*adminpb.ReadMessageReply, error) {
	id, err := queueID(r.GetQueueId())
	if err != nil {
		return nil, err
	}
	if r.GetOffset() < 0 {
		return nil, status.Errorf(codes.InvalidArgument, "offset %d is no place in a message", r.GetOffset())
	}
	m, ok := s.cluster.View().Message(id)
	switch {
	case !ok:
		return nil, status.Errorf(codes.NotFound, "no message %s: it was never accepted, has ended and is forgotten, or this node has not heard of it yet", id)
	case m.Finished:
		return nil, status.Errorf(codes.FailedPrecondition, "message %s has ended, and its content is no longer kept", id)
	}
	reply := &adminpb.ReadMessageReply{Size: int64(m.Body.Size), Sha256: m.Body.Digest[:]}
	body, err := s.cluster.OpenBody(ctx, m.Body)
	if err == nil {
		reply.Octets, err = piece(body, r.GetOffset(), reply.Size)
		err = errors.Join(err, body.Close())
	}
	if err != nil {
		s.log.ErrorContext(ctx, "content of a message not read", "queue_id", id.String(), "cause", err)
		err = s.hinted(ctx, codes.Unavailable, false, fmt.Sprintf("this node cannot read the content of %s at present, nor fetch it from another: see its log", id))
	}
	if r.GetOffset() == 0 || err != nil {
		s.audit(ctx, change{call: "ReadMessage", kind: "queue_id", subject: id.String()}, err)
	}
	if err != nil {
		return nil, err
	}
	return reply, nil
}

// piece reads what stands from an offset on, none at the end and behind it.
func piece(body io.ReadSeeker, offset, size int64) ([]byte, error) {
	octets := make([]byte, min(pieceBytesMax, max(0, size-offset)))
	if len(octets) == 0 {
		return nil, nil
	}
	if _, err := body.Seek(offset, io.SeekStart); err != nil {
		return nil, err
	}
	_, err := io.ReadFull(body, octets)
	return octets, err
}
