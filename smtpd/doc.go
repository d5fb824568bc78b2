// Package smtpd is the SMTP server: sessions on emersion/go-smtp behind a gate.
//
// What it promises:
//
//   - A message is answered 250 only when the Queue says that it is committed,
//     and then with its queue id.
//   - A message is answered 4yz or 5yz after its final dot only when it was
//     certainly never appended to the log. In every other case, an unknown
//     error and a panic included, the connection is closed and nothing is
//     written: the sender still owns the message (RFC 5321 section 4.2.5 forbids
//     to deliver what was answered 4yz or 5yz).
//   - Recipients of relay domains only; local parts that ask to be routed on are
//     refused. What reaches the Queue is parsed from the command as the client
//     wrote it, so that a quoted local part leaves as it came.
//   - The body is exactly what the gate read: octets, nothing is parsed but the
//     count of Received fields.
//   - Memory for a body is reserved before its octets are taken in.
//   - Strangers get generic text; the log has the cause.
//
// It assumes that Queue's methods but Submit do not block. It refuses
// CHUNKING, BINARYMIME, AUTH and address literals as recipients. It knows
// nothing of Raft, and does not decide who may send: that is for later checks.
package smtpd
