package peer

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/holdfast-mx/holdfast/proto/peerpb"
)

var membershipActions = map[MembershipAction]pb.ChangeServersRequest_Action{
	MemberAdd: pb.ChangeServersRequest_ADD, MemberRemove: pb.ChangeServersRequest_REMOVE,
}

// ChangeServers has the named node, as leader, change the cluster's servers. It
// answers as Backend.ChangeServers does.
func (p *Peers) ChangeServers(ctx context.Context, leader string, m Membership) (refusal string, err error) {
	client, err := p.ready(ctx, leader)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNotAppended, err)
	}
	r, err := client.ChangeServers(ctx, &pb.ChangeServersRequest{Action: membershipActions[m.Action], Name: m.Name, Force: m.Force})
	if err != nil {
		return "", fmt.Errorf("change of servers by %s: %w", leader, err)
	}
	switch o := r.GetOutcome().(type) {
	case *pb.ChangeServersReply_Done:
		return "", nil
	case *pb.ChangeServersReply_Refusal:
		return clip(o.Refusal), nil
	case *pb.ChangeServersReply_NotAppended:
		return "", fmt.Errorf("%w: %s: %s", ErrNotAppended, leader, clip(o.NotAppended.GetReason()))
	}
	return "", fmt.Errorf("change of servers by %s: an answer that is not understood", leader)
}

func (v service) ChangeServers(ctx context.Context, r *pb.ChangeServersRequest) (*pb.ChangeServersReply, error) {
	info, _ := caller(ctx)
	for action, code := range membershipActions {
		if code != r.GetAction() {
			continue
		}
		refusal, err := v.s.backend.ChangeServers(ctx, info.name, Membership{Action: action, Name: r.GetName(), Force: r.GetForce()})
		switch {
		case errors.Is(err, ErrNotAppended):
			return &pb.ChangeServersReply{Outcome: &pb.ChangeServersReply_NotAppended{NotAppended: &pb.NotAppended{Reason: reason(err)}}}, nil
		case err != nil:
			return nil, status.Error(codes.Unknown, reason(err))
		case refusal != "":
			return &pb.ChangeServersReply{Outcome: &pb.ChangeServersReply_Refusal{Refusal: clip(refusal)}}, nil
		}
		return &pb.ChangeServersReply{Outcome: &pb.ChangeServersReply_Done{Done: true}}, nil
	}
	return nil, status.Errorf(codes.InvalidArgument, "action %d", r.GetAction())
}
