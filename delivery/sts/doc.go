// Package sts finds out what MTA-STS policy a relay domain has (RFC 8461): the
// TXT record that announces it, the policy itself over HTTPS, and a cache that
// outlives both.
//
// A Source promises that a policy which was once fetched counts until its
// max_age is over, whatever DNS and the policy's host say meanwhile; that
// nothing counts that did not come over a verified connection to
// mta-sts.<domain>, whole and without a redirection; and that it never mistakes
// trouble for a domain without a policy.
//
// It assumes that the wall clock is about right: it judges certificates and ages
// by it. It does not judge next hops: that is delivery/tlspolicy's business.
package sts
