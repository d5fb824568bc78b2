package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/holdfast-mx/holdfast/delivery/dnscheck"
	mxroute "github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/delivery/sts"
	"github.com/holdfast-mx/holdfast/fsm/mail"
	"github.com/holdfast-mx/holdfast/proto/adminpb"
)

// exitWarnings is the exit status of "domain check" where mail comes, and something
// should be otherwise.
const exitWarnings = 2

// resolverPort is the port of a --resolver that names none.
const resolverPort = 53

// The JSON of "domain check". Field names are an interface.
type (
	checkJSON struct {
		Errors   int               `json:"errors"`
		Warnings int               `json:"warnings"`
		Domains  []checkDomainJSON `json:"domains"`
		Nodes    []checkNodeJSON   `json:"nodes"`
	}
	checkDomainJSON struct {
		Name     string        `json:"name"`
		Findings []findingJSON `json:"findings"`
	}
	checkNodeJSON struct {
		Name     string        `json:"name"`
		Hostname string        `json:"hostname"` // or empty
		Findings []findingJSON `json:"findings"`
	}
	findingJSON struct {
		Level   string       `json:"level"` // "error", "warning", "fine"
		Check   string       `json:"check"` // "mx", "address", "ptr", "smtp", "certificate", "tlsa", "mta-sts"
		Text    string       `json:"text"`
		Records []recordJSON `json:"records"`
		Policy  string       `json:"policy"` // the MTA-STS policy to serve, or empty
	}
	recordJSON struct {
		Action string `json:"action"` // "add", "remove"
		Name   string `json:"name"`
		Type   string `json:"type"`
		Data   string `json:"data"`
	}
)

// A lookFunc looks at DNS and at the nodes.
type lookFunc func(ctx context.Context, resolver netip.AddrPort, hello string, nodes []dnscheck.Node, domains []dnscheck.Domain) dnscheck.Facts

func (a *app) domainCheckCommand(look lookFunc) *cobra.Command {
	var resolver string
	var quiet bool
	cmd := &cobra.Command{
		Use:   "check [NAME...]",
		Short: "Look whether DNS and certificates bring the mail of relay domains to the nodes",
		Long: `Look, for the relay domains that are named, or all, and for every node of the
cluster, at what other mail servers go by: MX records, addresses, PTR records, the
MTA-STS policy (RFC 8461), TLSA records (RFC 7672), and the certificate that each
node shows on port 25. What is missing or wrong is printed as records for a zone
file, those to be removed behind a semicolon.

  error    mail does not come to where it should, be it that of some senders only
  warning  mail comes, and something should be otherwise
  fine     looked at, and as it should be

It looks from this host, with this host's resolver, which is the one that its node
uses. Where that has a view of its own, --resolver names one that sees what others
see. It connects to port 25 of every node, and sends no mail.

Exit status: 0 all is fine, 2 warnings only, 1 errors, or it could not be looked; and
those of the other commands.`,
		Example: `  holdfast domain check
  holdfast domain check example.test --resolver 9.9.9.9
  holdfast domain check --quiet -o json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var at netip.AddrPort
			if cmd.Flags().Changed("resolver") {
				var err error
				if at, err = parseResolver(resolver); err != nil {
					return usage(cmd, "--resolver: %v", err)
				}
			}
			var names []string
			for _, arg := range args {
				d, err := mail.ParseDomain(arg)
				if err != nil {
					return usage(cmd, "NAME: %v", err)
				}
				names = append(names, string(d))
			}
			nodes, domains, here, err := a.checkSubjects(cmd, names)
			if err != nil {
				return err
			}
			facts := look(cmd.Context(), at, hello(nodes, here), nodes, domains)
			if err := cmd.Context().Err(); err != nil {
				return err
			}
			return a.checked(dnscheck.Judge(facts), quiet)
		},
	}
	cmd.Flags().StringVar(&resolver, "resolver", "", "the recursive resolver to ask: `ADDRESS[:PORT]`")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "leave out what is fine")
	return cmd
}

// parseResolver reads ADDRESS, ADDRESS:PORT, [IPv6] or [IPv6]:PORT.
func parseResolver(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return netip.AddrPortFrom(a, resolverPort), nil
	}
	at, err := netip.ParseAddrPort(s)
	if err != nil || at.Port() == 0 {
		return netip.AddrPort{}, fmt.Errorf("%q is no address of a resolver, as in 9.9.9.9 or [2620:fe::fe]:53", s)
	}
	return at, nil
}

// checkSubjects asks the daemon for what is to be looked at, and for the name of the
// node that answers.
func (a *app) checkSubjects(cmd *cobra.Command, names []string) (nodes []dnscheck.Node, domains []dnscheck.Domain, here string, err error) {
	err = a.call(cmd, func(ctx context.Context, c adminpb.AdminServiceClient) error {
		listed, err := c.ListDomains(ctx, &adminpb.ListDomainsRequest{})
		if err != nil {
			return err
		}
		members, err := c.Members(ctx, &adminpb.MembersRequest{})
		if err != nil {
			return err
		}
		here = members.GetFreshness().GetNode()
		a.noteFreshness(members.GetFreshness())
		nodes = checkNodes(members.GetMembers(), here)
		domains = checkDomains(listed.GetDomains(), names)
		return nil
	})
	if err != nil {
		return nil, nil, "", err
	}
	for _, name := range names {
		if !slices.ContainsFunc(domains, func(d dnscheck.Domain) bool { return string(d.Name) == name }) {
			return nil, nil, "", &callError{exit: exitFailure, text: fmt.Sprintf("%s is no relay domain: see \"holdfast domain list\"", name)}
		}
	}
	return nodes, domains, here, nil
}

// checkNodes are the servers of the cluster. Who is only seen by gossip takes no
// mail yet.
func checkNodes(members []*adminpb.Member, here string) []dnscheck.Node {
	var all []dnscheck.Node
	for _, m := range members {
		if role(m) == "" {
			continue
		}
		n := dnscheck.Node{Name: m.GetName(), Host: strings.ToLower(strings.TrimSuffix(m.GetHostname(), ".")), Here: m.GetName() == here}
		for _, at := range m.GetSmtpAddresses() {
			// Another port is for others than mail servers, or they come to it by
			// address translation.
			if end, err := netip.ParseAddrPort(at); err == nil && end.Port() == portDefault {
				n.Addresses = append(n.Addresses, end.Addr().Unmap())
			}
		}
		all = append(all, n)
	}
	return all
}

// checkDomains are the relay domains of these names, all where there are none.
func checkDomains(listed []*adminpb.DomainStatus, names []string) []dnscheck.Domain {
	var all []dnscheck.Domain
	for _, s := range listed {
		d := s.GetDomain()
		if len(names) > 0 && !slices.Contains(names, d.GetName()) {
			continue
		}
		one := dnscheck.Domain{Name: mail.Domain(d.GetName()), OnDemand: d.GetOnDemand()}
		for _, t := range d.GetTargets() {
			one.Targets = append(one.Targets, t.GetHost())
		}
		all = append(all, one)
	}
	return all
}

// hello is the name to say EHLO with: this host's, as its node has it.
func hello(nodes []dnscheck.Node, here string) string {
	for _, n := range nodes {
		if n.Name == here && n.Host != "" {
			return n.Host
		}
	}
	name, err := os.Hostname()
	if d, bad := mail.ParseDomain(name); err == nil && bad == nil {
		return string(d)
	}
	return "localhost"
}

// lookOutside looks at the real world. A resolver that is zero is this host's.
func lookOutside(ctx context.Context, resolver netip.AddrPort, hello string, nodes []dnscheck.Node, domains []dnscheck.Domain) dnscheck.Facts {
	var c mxroute.DNSConfig
	if resolver.IsValid() {
		c.Servers = []netip.AddrPort{resolver}
	}
	dns := mxroute.NewDNS(c)
	policies := sts.New(sts.Config{Resolver: dns, Client: &http.Client{Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialPolicyHost(dns), DisableKeepAlives: true,
	}}})
	return dnscheck.NewSource(dnscheck.Config{
		Resolver: dns, Policy: policies.Fetch, Dial: new(net.Dialer).DialContext, Hello: hello, Now: time.Now,
	}).Look(ctx, nodes, domains)
}

// dialPolicyHost connects to the host of a policy where dns says that it is; to
// anybody else, who is a proxy, by this host's resolver.
func dialPolicyHost(dns *mxroute.DNS) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		var dialer net.Dialer
		host, port, err := net.SplitHostPort(address)
		if err != nil || !strings.HasPrefix(host, "mta-sts.") {
			return dialer.DialContext(ctx, network, address)
		}
		addresses, err := dns.Addresses(ctx, host)
		if err != nil {
			return nil, err
		}
		err = fmt.Errorf("%s has no address", host)
		for _, a := range addresses {
			var c net.Conn
			if c, err = dialer.DialContext(ctx, network, net.JoinHostPort(a.String(), port)); err == nil {
				return c, nil
			}
		}
		return nil, err
	}
}

// checked prints a report, and says by the exit status how it is.
func (a *app) checked(r dnscheck.Report, quiet bool) error {
	errs, warnings := r.Count(dnscheck.Error), r.Count(dnscheck.Warning)
	var err error
	if a.output == "json" {
		err = writeJSON(a.out, toCheckJSON(r, quiet))
	} else {
		err = a.printCheck(r, quiet)
	}
	switch {
	case err != nil:
		return err
	case errs > 0:
		return &callError{exit: exitFailure, text: fmt.Sprintf("%s, %s", plural(errs, "error"), plural(warnings, "warning"))}
	case warnings > 0:
		return &callError{exit: exitWarnings, text: plural(warnings, "warning")}
	}
	return nil
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func toCheckJSON(r dnscheck.Report, quiet bool) checkJSON {
	j := checkJSON{
		Errors: r.Count(dnscheck.Error), Warnings: r.Count(dnscheck.Warning), Domains: []checkDomainJSON{}, Nodes: []checkNodeJSON{},
	}
	for _, d := range r.Domains {
		j.Domains = append(j.Domains, checkDomainJSON{string(d.Name), toFindingsJSON(d.Findings, quiet)})
	}
	for _, n := range r.Nodes {
		j.Nodes = append(j.Nodes, checkNodeJSON{n.Name, n.Host, toFindingsJSON(n.Findings, quiet)})
	}
	return j
}

func toFindingsJSON(findings []dnscheck.Finding, quiet bool) []findingJSON {
	js := []findingJSON{}
	for _, f := range findings {
		if quiet && f.Level == dnscheck.Fine {
			continue
		}
		j := findingJSON{Level: f.Level.String(), Check: f.Check, Text: f.Text, Records: []recordJSON{}, Policy: f.Policy}
		for _, record := range f.Records {
			action := "add"
			if record.Remove {
				action = "remove"
			}
			j.Records = append(j.Records, recordJSON{action, record.Name, record.Type, record.Data})
		}
		js = append(js, j)
	}
	return js
}

func (a *app) printCheck(r dnscheck.Report, quiet bool) error {
	for _, d := range r.Domains {
		if err := a.printFindings("Domain "+string(d.Name), d.Findings, quiet); err != nil {
			return err
		}
	}
	for _, n := range r.Nodes {
		title := "Node " + n.Name
		if n.Host != "" {
			title += " (" + n.Host + ")"
		}
		if err := a.printFindings(title, n.Findings, quiet); err != nil {
			return err
		}
	}
	a.printRecords(r)
	if len(r.Domains) == 0 && !quiet {
		fmt.Fprintln(a.out, "No relay domains: no mail is accepted.")
	}
	return nil
}

func (a *app) printFindings(title string, findings []dnscheck.Finding, quiet bool) error {
	if quiet {
		findings = slices.DeleteFunc(slices.Clone(findings), func(f dnscheck.Finding) bool { return f.Level == dnscheck.Fine })
	}
	if len(findings) == 0 {
		return nil
	}
	fmt.Fprintln(a.out, escape(title))
	t := newTable(a.out)
	for _, f := range findings {
		t.row("  "+f.Level.String(), f.Check, f.Text)
	}
	if err := t.flush(); err != nil {
		return err
	}
	fmt.Fprintln(a.out)
	return nil
}

// printRecords prints what is to be changed, such that all of it can be pasted into
// a zone file. Policies, which are no records, are comments there.
func (a *app) printRecords(r dnscheck.Report) {
	records := r.Records()
	if len(records) > 0 {
		fmt.Fprintln(a.out, "; Records, each for the zone that its name is in. Where several could be meant, choose.")
	}
	for _, remove := range []bool{false, true} {
		title := false
		for _, record := range records {
			if record.Remove != remove {
				continue
			}
			line := escape(record.String())
			if remove {
				if !title {
					fmt.Fprintln(a.out, "; To be removed:")
				}
				line = "; " + line
			}
			title = true
			fmt.Fprintln(a.out, line)
		}
	}
	for _, d := range r.Domains {
		if i := slices.IndexFunc(d.Findings, func(f dnscheck.Finding) bool { return f.Policy != "" }); i >= 0 {
			fmt.Fprintf(a.out, "; The policy at https://mta-sts.%s/.well-known/mta-sts.txt (publish it before its record):\n", escape(string(d.Name)))
			for line := range strings.Lines(d.Findings[i].Policy) {
				fmt.Fprintln(a.out, "; "+escape(strings.TrimSuffix(line, "\n")))
			}
		}
	}
	if len(records) > 0 {
		fmt.Fprintln(a.out)
	}
}
