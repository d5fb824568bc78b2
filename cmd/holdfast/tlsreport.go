package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// The JSON of "domain tls". Names of fields are those of RFC 8460 where it has any.
type (
	tlsReportJSON struct {
		Node string       `json:"node"`
		Days []tlsDayJSON `json:"days"`
	}
	tlsDayJSON struct {
		Day      string          `json:"day"` // 2026-11-30, UTC
		Policies []tlsPolicyJSON `json:"policies"`
	}
	tlsPolicyJSON struct {
		Domain    string           `json:"policy-domain"` // empty: those that are not told apart
		Type      string           `json:"policy-type"`
		Succeeded uint64           `json:"total-successful-session-count"`
		Failed    uint64           `json:"total-failure-session-count"`
		Failures  []tlsFailureJSON `json:"failure-details"`
	}
	tlsFailureJSON struct {
		Result   string `json:"result-type"`
		Host     string `json:"receiving-mx-hostname"`
		Sessions uint64 `json:"failed-session-count"`
	}
)

func (a *app) domainTLSCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "tls [NAME]",
		Short: "Count what TLS the next hops showed",
		Long: `Count, per day and domain, the connections to next hops that had the TLS they should
have, and those that had not, with the reasons of RFC 8460. These are the connections
of the node that is asked, since it started, of the last eight days: ask each node.`,
		Example: `  holdfast domain tls
  holdfast domain tls example.test -o json`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r := &adminpb.TLSReportRequest{}
			if len(args) > 0 {
				d, err := mail.ParseDomain(args[0])
				if err != nil {
					return usage(cmd, "NAME: %v", err)
				}
				r.Name = string(d)
			}
			return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
				report, err := c.TLSReport(ctx, r)
				if err != nil {
					return err
				}
				if a.output == "json" {
					return writeJSON(a.out, toTLSReportJSON(report))
				}
				return a.printTLSReport(report)
			})
		},
	}
}

func toTLSReportJSON(r *adminpb.TLSReportReply) tlsReportJSON {
	report := tlsReportJSON{Node: r.GetNode(), Days: []tlsDayJSON{}}
	for _, d := range r.GetDays() {
		day := tlsDayJSON{Day: dayOf(d), Policies: []tlsPolicyJSON{}}
		for _, p := range d.GetPolicies() {
			policy := tlsPolicyJSON{Domain: p.GetDomain(), Type: p.GetPolicyType(), Succeeded: p.GetSucceeded(), Failed: p.GetFailed(), Failures: []tlsFailureJSON{}}
			for _, f := range p.GetFailures() {
				policy.Failures = append(policy.Failures, tlsFailureJSON{f.GetResultType(), f.GetHost(), f.GetSessions()})
			}
			day.Policies = append(day.Policies, policy)
		}
		report.Days = append(report.Days, day)
	}
	return report
}

func dayOf(d *adminpb.TLSReportDay) string {
	return time.Unix(d.GetUnix(), 0).UTC().Format(time.DateOnly)
}

func (a *app) printTLSReport(r *adminpb.TLSReportReply) error {
	if len(r.GetDays()) == 0 {
		_, err := fmt.Fprintf(a.out, "%s has made no connections that would be counted.\n", escape(r.GetNode()))
		return err
	}
	t := newTable(a.out, "DAY", "DOMAIN", "POLICY", "GOOD", "BAD", "REASON", "HOST")
	for _, d := range r.GetDays() {
		for _, p := range d.GetPolicies() {
			t.row(dayOf(d), p.GetDomain(), p.GetPolicyType(), count(p.GetSucceeded()), count(p.GetFailed()), "", "")
			for _, f := range p.GetFailures() {
				t.row("", "", "", "", count(f.GetSessions()), f.GetResultType(), f.GetHost())
			}
		}
	}
	return t.flush()
}
