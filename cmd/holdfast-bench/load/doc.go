// Package load gives mail to SMTP servers as fast as they take it, and counts.
//
// It is the opposite of package sender: it keeps no ledger and tries nothing
// again, so that it takes as little as possible of the machine that it shares
// with what it measures. Each message goes over a connection of its own, as most
// mail does: connect, EHLO, the envelope in one piece where pipelining is
// offered, the content, the reply to the final dot, QUIT. Only that reply, a 250,
// makes a message accepted; everything else is a failure, counted by its code.
//
// All contents and Message-IDs differ. The octets come out of a pool that is
// made once; per message only a header and one line are written anew.
package load
