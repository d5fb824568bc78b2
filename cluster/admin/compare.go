package admin

import (
	"context"
	"time"

	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// compareWait is how long the servers have for it: a tick of the log, the encoding of a
// long queue, and that again where the log ran ahead.
const compareWait = 2 * time.Minute

// Compare implements adminpb.AdminServiceServer.
func (s *Service) Compare(ctx context.Context, _ *adminpb.CompareRequest) (*adminpb.CompareReply, error) {
	ctx, cancel := context.WithTimeout(ctx, compareWait)
	defer cancel()
	reply := &adminpb.CompareReply{}
	for _, c := range s.cluster.Compare(ctx) {
		p := &adminpb.Copy{Node: string(c.Server)}
		if c.Silent != nil {
			p.Silent = text(c.Silent.Error())
		} else {
			p.Index, p.Sum, p.Messages = uint64(c.Index), c.Sum[:], c.Messages
		}
		reply.Copies = append(reply.Copies, p)
	}
	return reply, nil
}
