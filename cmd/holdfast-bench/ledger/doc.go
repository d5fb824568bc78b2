// Package ledger is the one checker of what Holdfast promises: what was
// acknowledged to a sender, what arrived at the primary, and whether the two
// agree. Everything that drives mail through a cluster (the demo, the kill
// run, simulations, end-to-end tests) records here and ends in Check.
//
// The unit of account is the pair of a message and one of its recipients,
// since SMTP answers for recipients one by one and a message may be split
// between relay domains. A message is named by its marker, which must stand in
// the local part of every recipient (see Recipient), so that an arrival is
// joined to its message even when its octets were destroyed, and so that a
// message with no room for a header (an empty body) can be joined at all.
//
// A sender records an Intent before it writes the final dot, and an Outcome
// when it knows the reply or knows that it will get none. A primary records an
// Arrival for every recipient of every message that it took. The ledger trusts
// neither to be complete: a process may die between two records, so a missing
// outcome counts as unknown, never as a refusal.
//
// The check has one law for each promise:
//
//   - a pair with a 250 has arrived, or its sender was told that it will not, or it
//     was seen to be held: else it is lost;
//   - what arrived is, behind trace fields, the octets that were sent: else it
//     is altered;
//   - a pair whose every attempt was refused never arrives (RFC 5321 section
//     4.2.5), none arrives when all attempts so far were refused, and none under a
//     queue id that no attempt can have had: else it was delivered though refused;
//   - copies beyond the first are counted as duplicates, and are no fault of
//     themselves: CheckCopies judges them by what happened to each pair, where
//     that is known;
//   - senders are told where that is due, once, and nowhere else: CheckNotices, which
//     is told of which domains (Tell);
//   - replies come in time: Late;
//   - 250s are given again within a time once a majority is healthy: Pauses finds
//     where they were not, where it is known which node had an outage when.
//
// A Ledger lives in memory and, when it was opened on a file, appends each
// record to it as one JSON line before the call returns. It is safe for
// concurrent use.
package ledger
