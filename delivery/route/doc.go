// Package route finds the next hops of a relay domain: the explicit targets
// that were configured, in their order, or the hosts of the domain's MX records
// by RFC 5321 section 5.1.
//
// It promises that no cluster member is ever among the hops, nor anything that
// the MX records call equal or worse than one: mail must not go round in a
// circle among backups. It keeps nothing: every attempt looks up anew, so that
// a change of DNS or configuration works on mail that is already queued.
//
// It refuses to turn trouble in DNS into a verdict on mail: whatever goes
// wrong, NXDOMAIN and a null MX included, is an error whose text says what, and
// the mail waits. Only this package imports miekg/dns.
package route
