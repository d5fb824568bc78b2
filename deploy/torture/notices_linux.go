package main

import (
	"errors"
	"net"
	"net/netip"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/sink"
)

// refusedEvery is how often a letter has recipients that the primary refuses for good.
const refusedEvery = 6

// tellAll is the policy of a domain whose senders are told what was refused.
const tellAll = "always"

// policies are what each relay domain does about what is refused for good: in one of
// them senders are told, in the others what the seed says.
func policies(seed uint64) map[string]string {
	all := map[string]string{}
	for i, domain := range domains() {
		all[domain] = tellAll
		if i > 0 {
			all[domain] = []string{"hold", tellAll, "aligned"}[(seed+uint64(i))%3]
		}
	}
	return all
}

// telling are the domains whose senders are told.
func telling(policies map[string]string) []string {
	var all []string
	for domain, policy := range policies {
		if policy == tellAll {
			all = append(all, domain)
		}
	}
	return all
}

func (c *cast) refused(r ledger.Refusal) error {
	return errors.Join(c.arrived.Refusal(r), c.book.Refusal(r))
}

// reportsUp brings the smarthost up, which notes whom a report tells of what.
func (c *cast) reportsUp() error {
	l, err := net.Listen("tcp", netip.AddrPortFrom(addressReports, primaryPort).String())
	if err != nil {
		return err
	}
	c.reports = sink.Start(l, sink.Options{
		Hostname: "smarthost.test", Message: c.told,
		Arrival: func(ledger.Arrival) error { return nil },
		Unread:  func(u ledger.Unread) { _ = c.arrived.Unread(u) },
	})
	return nil
}

// told notes a report.
func (c *cast) told(m sink.Message) error {
	notices, err := m.Notices()
	if err != nil {
		c.diary.breach("L9", "%v", err)
	}
	var errs []error
	for _, n := range notices {
		errs = append(errs, c.arrived.Notice(n), c.book.Notice(n))
	}
	return errors.Join(errs...)
}
