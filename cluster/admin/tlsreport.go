package admin

import (
	"context"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// TLSReport implements adminpb.AdminServiceServer.
func (s *Service) TLSReport(ctx context.Context, r *adminpb.TLSReportRequest) (*adminpb.TLSReportReply, error) {
	var only mail.Domain
	if r.GetName() != "" {
		var err error
		if only, err = domainName("name", r.GetName()); err != nil {
			return nil, err
		}
	}
	reply := &adminpb.TLSReportReply{Node: string(s.cluster.Status(ctx).Node)}
	for _, day := range s.cluster.TLSReport() {
		d := &adminpb.TLSReportDay{Unix: day.Start.Unix()}
		for _, p := range day.Policies {
			if only != "" && p.Domain != only {
				continue
			}
			one := &adminpb.TLSReportPolicy{Domain: string(p.Domain), PolicyType: p.Type, Succeeded: p.Succeeded, Failed: p.Failed}
			for _, f := range p.Failures {
				one.Failures = append(one.Failures, &adminpb.TLSReportFailure{ResultType: f.Result, Host: text(f.Host), Sessions: f.Sessions})
			}
			d.Policies = append(d.Policies, one)
		}
		if len(d.Policies) > 0 {
			reply.Days = append(reply.Days, d)
		}
	}
	return reply, nil
}
