// Package smtpclient speaks one outbound SMTP conversation over a connection
// that somebody else dialled.
//
// A transaction is taken in separate steps, so that its caller decides, at the
// last possible moment, whether the message may be taken over at all: Begin
// (MAIL, RCPT, DATA, pipelined where the peer offers it), Body (trace fields
// and content, everything up to the final dot), and then either Dot or Abort.
// Dot, alone or in DotAndBegin, is all that can make a peer responsible for a
// message. DotAndBegin also says the next transaction's MAIL, RCPT and DATA, in
// one write with the dot, so that a message costs one round trip; Answer, in
// place of Begin, then takes the replies.
//
// It promises: nothing it writes can be read as anything but what was meant
// (paths are checked again, content with a stray CR or LF is refused before it
// is written on, dots are stuffed); a reply is bounded in line length, lines
// and octets; every wait has the deadline of RFC 5321 section 4.5.3.2, or the
// shorter PipelinedTimeout, and ends with its context; what
// had come before a command or a dot went out is not taken for the reply to it; when
// the content cannot be read to its end, the connection is closed without the dot.
//
// It assumes that one goroutine at a time uses a Conn. It refuses to judge: a
// 4yz or 5yz is a value, and what it means for a message is the caller's
// business. Content with octets above 127 is sent as it is to a peer that does
// not offer 8BITMIME: changing it would break its signature, and such peers
// are in practice transparent.
package smtpclient
