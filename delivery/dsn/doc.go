// Package dsn writes delivery status notifications: the report of RFC 3464 that
// tells a sender what became of a message, as octets, with the envelope to send
// it in.
//
// Judge says for each recipient whether a report is due, or why none may be
// made; Compose writes one about those for whom it is due, and writes nothing
// else. Both are pure: time, names and ids are handed in, and the same Report
// gives the same octets on every node and at every attempt.
//
// It promises, whatever the original message, its envelope and the next hop's
// replies hold: no report about a message that has a null reverse-path, that
// says it was made by a machine or by a list, or whose reverse-path is a host of
// ours or the very mailbox that cannot be reached; lines of at most 998 octets
// that end in CRLF; three parts under one multipart/report, whose boundary occurs
// in none of them; 7-bit octets wherever the media type leaves a choice, and a
// label where not. Nothing of what strangers wrote can become a field of the
// report's header, of a part's header, or of the part for machines.
//
// It assumes that Original.Content are the message's first octets, enough of
// them (ContentBytesMax) to hold its header.
//
// It refuses to decide what a sender is worth: whether a domain's policy lets a
// report leave at all (bounce = aligned | hold | always) is its caller's
// business, as is what happens to a recipient about whom none is made.
package dsn
