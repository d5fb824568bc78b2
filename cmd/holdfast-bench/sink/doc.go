// Package sink is a primary for tests and measurements: an SMTP server that takes what
// it is not told to refuse, records what arrived in a ledger, and misbehaves when told
// to, at any stage of the conversation.
//
// It is strict where a strict primary would be: commands and lines of content
// end in CRLF and hold no other CR or LF, only CRLF.CRLF ends the content,
// nothing may follow STARTTLS in the same packet, parameters must be ones it
// offered. What breaks these rules is refused and counted as a violation,
// since a relay must not do it.
//
// It promises that an arrival is recorded before the 250 is written, and that what it
// refused is never recorded as one: refusals have records of their own. It keeps no
// content beyond the session, and in it no more than a mebibyte, for who wants to look;
// it serves any number of listeners, real or in memory, and no goroutine is left after
// Close.
//
// It refuses to be a mail server: there is no queue, no mailbox, no relaying.
package sink
