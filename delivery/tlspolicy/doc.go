// Package tlspolicy decides what TLS a next hop must show before mail may be
// given to it.
//
// A Policy is what the operator asked for of one relay domain: opportunistic
// TLS, any TLS, a verified certificate, DANE (RFC 7672) or MTA-STS (RFC 8461).
// Policy.Decide takes what is known of one hop, its name, the TLSA records and
// the MTA-STS policy with how far they can be believed, and returns the settings
// for STARTTLS, or a *Failure: mail that waits and an alarm.
//
// It promises that a decision with settings (Decision.Config) lets no session
// pass that the policy forbids, and that what could not be learnt is never taken
// for permission to go on in the clear: the zero values of TLSA and STS mean
// that nothing is known.
//
// It looks nothing up, fetches nothing and has no clock: answers and the time
// are handed in. The one thing that it takes from the host is the store of
// public certification authorities, where no other is given. It refuses to
// offer or to honour REQUIRETLS.
//
// Counts are what RFC 8460 reports of all this: sessions per domain and day.
package tlspolicy
