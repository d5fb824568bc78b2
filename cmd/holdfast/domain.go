package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// portDefault is the port of a next hop that names none.
const portDefault = 25

// The JSON of "domain list" and of domains in "status". Field names are an
// interface.
type (
	domainsJSON struct {
		Domains []domainJSON `json:"domains"`
		StaleMS *int64       `json:"stale_ms"`
		Quorum  bool         `json:"quorum"`
	}
	domainJSON struct {
		Name         string   `json:"name"`
		MX           bool     `json:"mx"`
		Targets      []string `json:"targets"`
		NextHopState string   `json:"next_hop_state"` // "up", "suspect", "down", "refusing"
		Since        string   `json:"since"`          // RFC 3339, or empty
		Detail       string   `json:"detail"`
		FailedNodes  []string `json:"failed_nodes"`
		BarredNodes  []string `json:"barred_nodes"` // that it answered, and refused
		Queued       uint64   `json:"queued"`
		Held         uint64   `json:"held"`
		Leased       uint64   `json:"leased"`
		Waiting      uint64   `json:"waiting"`
		InDoubt      *uint64  `json:"in_doubt"`      // null where there are too many to count
		Guarded      bool     `json:"guarded"`       // back, and has taken nothing yet
		Stopped      bool     `json:"stopped"`       // until "domain resume"
		StoppedSince string   `json:"stopped_since"` // RFC 3339, or empty
		// Null where a version that did not know them put the domain.
		RetryMinMS     *uint64  `json:"retry_min_ms"`
		RetryMaxMS     *uint64  `json:"retry_max_ms"`
		LifetimeMS     *uint64  `json:"lifetime_ms"` // 0: for ever
		ConnectionsMax *uint32  `json:"connections_max"`
		ETRN           []string `json:"etrn"` // networks
		TLS            tlsJSON  `json:"tls"`
		Bounce         string   `json:"bounce"`           // "aligned", "hold" or "always"
		DelayWarningMS uint64   `json:"delay_warning_ms"` // 0: never
		XClient        bool     `json:"xclient"`
		CallerPins     []string `json:"caller_pins"` // SHA-256 of keys
		CallerUser     string   `json:"caller_user"` // or empty
		OnDemand       bool     `json:"on_demand"`
	}
)

// tlsJSON is a TLS policy.
type tlsJSON struct {
	Mode        string   `json:"mode"`
	Pins        []string `json:"pins"`
	Authorities string   `json:"authorities"` // PEM
	Names       []string `json:"names"`
}

func toTLSJSON(t *adminpb.TLSPolicy) tlsJSON {
	if t == nil {
		return tlsJSON{Mode: "opportunistic", Pins: []string{}, Names: []string{}}
	}
	return tlsJSON{Mode: t.GetMode(), Pins: list(t.GetPins()), Authorities: t.GetAuthorities(), Names: list(t.GetNames())}
}

func (a *app) domainCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "domain",
		Short: "Configure the relay domains: those that the cluster takes mail for",
		Long: `Configure the relay domains. The configuration is the cluster's: a change through
one node counts on all. Mail for a domain that is not listed is refused.`,
		Example: `  holdfast domain put example.test --to mail.example.test
  holdfast domain check example.test
  holdfast domain list`,
	}, a.domainPutCommand(), a.domainListCommand(), a.domainCheckCommand(lookOutside), a.domainRemoveCommand(), a.domainFlushCommand(), a.domainResumeCommand(), a.domainTLSCommand())
}

func (a *app) domainPutCommand() *cobra.Command {
	var to []string
	var mx, onDemand bool
	var schedule scheduleFlags
	cmd := &cobra.Command{
		Use:   "put NAME [--to HOST[:PORT][,HOST[:PORT]...] | --mx | --on-demand]",
		Short: "Add a relay domain, or change where its mail goes and how it is tried",
		Long: `Add a relay domain, or change one: what is not said stays as it is. Mail that is
already queued goes the new way at its next attempt.

--to names the primary: host names or addresses, tried in order, port 25 unless
given. An IPv6 address stands in brackets. --mx takes the domain's MX records
instead, without the nodes of this cluster and without what is listed as equal or
worse. --on-demand is for a primary that no node can reach, behind address translation
for one: its mail waits until the primary calls for it by ATRN (RFC 2645), at the nodes'
atrn_listen. A new domain needs one of the three.

A message that the primary puts off with a 4xx reply is tried again after
--retry-min, and after twice as long each time, up to --retry-max; up to a quarter
is added, so that not all come back together. Mail that waits for a primary which
cannot be reached is tried when it answers again, whatever these say. What is not
delivered within --lifetime is held: "holdfast queue list --state held" lists it,
"holdfast queue release" gives it another lifetime.

The primary itself may have its mail delivered at once by ETRN (RFC 1985), as may hosts
in the networks that --etrn names, and who shows a TLS client certificate whose key
--caller-pin lists, from wherever: neither its names nor its dates then matter.

ATRN is for who shows such a certificate, and for who knows the name of --caller-user and
the password that is the first line of --caller-password-file ("-" is the standard input);
the nodes keep no password, only what is made of it. One name may call for several domains.

--tls says what TLS the primary must show; until it does, its mail waits, with an
alarm. opportunistic takes what there is, and goes on in the clear; require wants TLS
with any certificate; verify wants a key of --tls-pin, or a certificate of --tls-ca, or
of a public authority, for the primary's name or one of --tls-name; dane and mta-sts
want what the domain's DNS says (RFC 7672, RFC 8461). dane needs a validating resolver
on each node.

Mail that the primary refuses for good is held, as is what outlives its lifetime.
--bounce says who is told so (RFC 3461): always is every sender, also one that somebody
made up; aligned is whoever was authenticated when the mail was accepted, which is not
recorded yet, so nobody, as with hold. What was refused ends when its sender is told.
Of reports, lists and automatic mail nobody is told: that stays held. With
--delay-warning a sender who asked for it (NOTIFY=DELAY) hears that his mail waits.
Reports go to the sender's MX hosts, or to the smarthost that a node's file names.

With --xclient a primary that is a Postfix and lists the nodes in its
smtpd_authorized_xclient_hosts is told for each message who gave it to us, and can judge
that client. It costs two round trips a message. Without it the client stands in the
topmost Received field of ours: docs/filters.md says how filters find it.`,
		Example: `  holdfast domain put example.test --to mail.example.test
  holdfast domain put example.test --to 192.0.2.10:2525,[2001:db8::10]
  holdfast domain put example.org --mx
  holdfast domain put example.org --retry-min 1m --retry-max 1h --lifetime 30d`,
		Args: exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := mail.ParseDomain(args[0])
			if err != nil {
				return usage(cmd, "NAME: %v", err)
			}
			d := &adminpb.Domain{Name: string(name), Mx: mx, OnDemand: onDemand}
			if mx && len(to) > 0 || onDemand && (mx || len(to) > 0) {
				return usage(cmd, "say where the mail goes: either --to HOST[:PORT], or --mx, or --on-demand")
			}
			if err := schedule.into(d, cmd.Flags(), cmd.InOrStdin()); err != nil {
				return usage(cmd, "%v", err)
			}
			if !mx && !onDemand && len(to) == 0 && d.RetryMinMs == nil && d.RetryMaxMs == nil && d.LifetimeMs == nil && d.ConnectionsMax == nil && d.Etrn == nil && d.Tls == nil && d.Bounce == nil && d.DelayWarningMs == nil && d.Xclient == nil && d.CallerPins == nil && d.Caller == nil {
				return usage(cmd, "say where the mail goes, --to HOST[:PORT], --mx or --on-demand, or what else is to change")
			}
			for _, s := range to {
				target, err := parseTarget(s)
				if err != nil {
					return usage(cmd, "--to: %v", err)
				}
				d.Targets = append(d.Targets, target)
			}
			return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
				r, err := c.PutDomain(ctx, &adminpb.PutDomainRequest{Domain: d})
				if err != nil {
					return err
				}
				for _, w := range r.GetWarnings() {
					a.complain("warning: %s", w)
				}
				text := fmt.Sprintf("%s is changed.", name)
				switch {
				case onDemand:
					text = fmt.Sprintf("Mail for %s waits until it is called for.", name)
				case mx || len(to) > 0:
					text = fmt.Sprintf("Mail for %s goes to %s.", name, route(d))
				}
				return a.done(text, map[string]any{
					"domain": string(name), "mx": mx, "on_demand": onDemand, "targets": targets(d), "warnings": list(r.GetWarnings()),
				})
			})
		},
	}
	cmd.Flags().StringSliceVar(&to, "to", nil, "the primary: `HOST[:PORT]`, several separated by commas")
	cmd.Flags().BoolVar(&mx, "mx", false, "route by the domain's MX records")
	cmd.Flags().BoolVar(&onDemand, "on-demand", false, "keep its mail until the primary calls for it (ATRN)")
	schedule.add(cmd.Flags())
	return cmd
}

func (a *app) domainListCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the relay domains, the state of their next hops, and their queues",
		Long: `List the relay domains with what is queued for them. The state of a next hop is
"up" (or never tried), "suspect" (a node failed to reach it), "down" (two nodes
failed), "refusing" (it answers, and refuses the nodes) or "stopped" (it refuses what
it took before: see "holdfast domain resume").

How each is configured is in -o json.`,
		Example: `  holdfast domain list
  holdfast domain list -o json`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
				r, err := c.ListDomains(ctx, &adminpb.ListDomainsRequest{})
				if err != nil {
					return err
				}
				if a.output == "json" {
					return writeJSON(a.out, domainsJSON{toDomainsJSON(r.GetDomains()), staleMS(r.GetFreshness()), r.GetFreshness().GetQuorum()})
				}
				a.noteFreshness(r.GetFreshness())
				return a.printDomains(r.GetDomains())
			})
		},
	}
}

func (a *app) domainRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Stop taking mail for a domain",
		Long: `Stop taking mail for a domain. Refused while mail for it is queued or held: have
it delivered, or remove it, first.`,
		Example: `  holdfast domain remove example.test`,
		Args:    exactly("NAME"),
		RunE: a.onDomain("Mail for %s is no longer accepted.", func(ctx context.Context, c adminpb.AdminServiceClient, name string) error {
			_, err := c.RemoveDomain(ctx, &adminpb.RemoveDomainRequest{Name: name})
			return err
		}),
	}
}

func (a *app) domainFlushCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "flush NAME",
		Short: "Try the next hop of a domain now, and all mail that waits for it",
		Long: `Make all queued mail of a domain due at once, and have every node try its next
hop now. Mail in doubt still waits: a node may be about to report that it was
delivered.`,
		Example: `  holdfast domain flush example.test`,
		Args:    exactly("NAME"),
		RunE: a.onDomain("The next hop of %s is tried now.", func(ctx context.Context, c adminpb.AdminServiceClient, name string) error {
			_, err := c.FlushDomain(ctx, &adminpb.FlushDomainRequest{Name: name})
			return err
		}),
	}
}

func (a *app) domainResumeCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "resume NAME",
		Short: "Have the delivery to a domain go on that was stopped",
		Long: `Have the delivery to a domain go on. It is stopped when the primary comes back
from an outage and at once refuses mail for good ("550 no such user") for recipients
that it took mail for before: most likely it is not set up yet, and would refuse the
whole queue. At most three messages are spent to find out; they are held, and no
sender is told, whatever --bounce of "domain put" says.

Repair the primary first. Until the next outage nothing stops the delivery again.
What was refused is still held: "holdfast queue release" has it tried again.`,
		Example: `  holdfast domain resume example.test`,
		Args:    exactly("NAME"),
		RunE: a.onDomain("The delivery to %s goes on.", func(ctx context.Context, c adminpb.AdminServiceClient, name string) error {
			_, err := c.ResumeDomain(ctx, &adminpb.ResumeDomainRequest{Name: name})
			return err
		}),
	}
}

// onDomain runs a change of the domain that is the only argument, and then prints
// done with its name.
func (a *app) onDomain(done string, change func(ctx context.Context, c adminpb.AdminServiceClient, name string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		d, err := mail.ParseDomain(args[0])
		if err != nil {
			return usage(cmd, "NAME: %v", err)
		}
		name := string(d)
		return a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
			if err := change(ctx, c, name); err != nil {
				return err
			}
			return a.done(fmt.Sprintf(done, name), map[string]any{"domain": name})
		})
	}
}

// done prints the end of a change.
func (a *app) done(text string, v map[string]any) error {
	if a.output == "json" {
		return writeJSON(a.out, v)
	}
	_, err := fmt.Fprintln(a.out, escape(text))
	return err
}

// parseTarget reads HOST, HOST:PORT, [IPv6] or [IPv6]:PORT.
func parseTarget(s string) (*adminpb.Target, error) {
	host, port := s, uint64(portDefault)
	bracketed := strings.HasPrefix(s, "[")
	switch {
	case bracketed && strings.HasSuffix(s, "]"):
		host = s[1 : len(s)-1]
	case strings.Count(s, ":") > 1 && !bracketed:
		return nil, fmt.Errorf("%q: write an IPv6 address in brackets, as in [2001:db8::10]:25", s)
	case strings.Contains(s, ":"):
		h, p, err := net.SplitHostPort(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no HOST:PORT", s)
		}
		port, err = strconv.ParseUint(p, 10, 16)
		if err != nil || port == 0 {
			return nil, fmt.Errorf("%q: the port is a number from 1 to 65535", s)
		}
		host = h
	}
	addr, addrErr := netip.ParseAddr(host)
	if bracketed && (addrErr != nil || !addr.Is6()) {
		return nil, fmt.Errorf("%q: brackets hold an IPv6 address", s)
	}
	if addrErr != nil {
		name, err := mail.ParseDomain(host)
		if err != nil || strings.Trim(host, "0123456789.") == "" {
			return nil, fmt.Errorf("%q is neither a host name nor an address", s)
		}
		host = string(name)
	}
	return &adminpb.Target{Host: host, Port: uint32(port)}, nil
}

func targets(d *adminpb.Domain) []string {
	all := []string{}
	for _, t := range d.GetTargets() {
		all = append(all, net.JoinHostPort(t.GetHost(), strconv.FormatUint(uint64(t.GetPort()), 10)))
	}
	return all
}

func route(d *adminpb.Domain) string {
	switch {
	case d.GetMx():
		return "its MX hosts"
	case d.GetOnDemand():
		return "who calls for it"
	}
	return strings.Join(targets(d), ", ")
}

// bounceWord is whose mail is reported on to its sender.
func bounceWord(d *adminpb.Domain) string {
	if d.Bounce == nil {
		return "aligned"
	}
	return d.GetBounce()
}

// nextHopWord is the state of a next hop in one word.
func nextHopWord(s adminpb.NextHopState) string {
	switch s {
	case adminpb.NextHopState_NEXT_HOP_STATE_UP:
		return "up"
	case adminpb.NextHopState_NEXT_HOP_STATE_SUSPECT:
		return "suspect"
	case adminpb.NextHopState_NEXT_HOP_STATE_DOWN:
		return "down"
	case adminpb.NextHopState_NEXT_HOP_STATE_REFUSING:
		return "refusing"
	}
	return "unknown"
}

func toDomainsJSON(domains []*adminpb.DomainStatus) []domainJSON {
	js := []domainJSON{}
	for _, d := range domains {
		js = append(js, domainJSON{
			Name: d.GetDomain().GetName(), MX: d.GetDomain().GetMx(), Targets: targets(d.GetDomain()),
			NextHopState: nextHopWord(d.GetNextHopState()), Since: rfc3339(d.GetSinceUnix()), Detail: d.GetDetail(),
			FailedNodes: list(d.GetFailedNodes()), BarredNodes: list(d.GetBarredNodes()),
			Queued: d.GetQueued(), Held: d.GetHeld(), Leased: d.GetLeased(), Waiting: d.GetWaiting(), InDoubt: d.InDoubt,
			RetryMinMS: d.GetDomain().RetryMinMs, RetryMaxMS: d.GetDomain().RetryMaxMs, LifetimeMS: d.GetDomain().LifetimeMs,
			ConnectionsMax: d.GetDomain().ConnectionsMax, ETRN: list(d.GetDomain().GetEtrn().GetNetworks()),
			TLS:    toTLSJSON(d.GetDomain().GetTls()),
			Bounce: bounceWord(d.GetDomain()), DelayWarningMS: d.GetDomain().GetDelayWarningMs(), XClient: d.GetDomain().GetXclient(),
			CallerPins: list(d.GetDomain().GetCallerPins().GetPins()), CallerUser: d.GetDomain().GetCaller().GetUser(), OnDemand: d.GetDomain().GetOnDemand(),
			Guarded: d.GetGuarded(), Stopped: d.GetStopped(), StoppedSince: rfc3339(d.GetStoppedSinceUnix()),
		})
	}
	return js
}

func (a *app) printDomains(domains []*adminpb.DomainStatus) error {
	if len(domains) == 0 {
		_, err := fmt.Fprintln(a.out, `No relay domains: no mail is accepted. Add one with "holdfast domain put NAME --to HOST".`)
		return err
	}
	t := newTable(a.out, "DOMAIN", "NEXT HOP", "STATE", "QUEUED", "HELD", "LEASED", "WAITING", "IN DOUBT", "DETAIL")
	for _, d := range domains {
		doubt := "many"
		if d.InDoubt != nil {
			doubt = count(d.GetInDoubt())
		}
		state := nextHopWord(d.GetNextHopState())
		if d.GetStopped() {
			state = "stopped"
		}
		t.row(d.GetDomain().GetName(), route(d.GetDomain()), state,
			count(d.GetQueued()), count(d.GetHeld()), count(d.GetLeased()), count(d.GetWaiting()), doubt, d.GetDetail())
	}
	return t.flush()
}
