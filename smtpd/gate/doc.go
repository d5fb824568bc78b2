// Package gate stands between the network and go-smtp. It owns the socket and
// TLS, follows both directions of the conversation, and hands go-smtp one clean
// command at a time.
//
// What it promises:
//
//   - Only CRLF.CRLF, as it was sent, ends a message. Stray CR and LF are
//     normalised before anybody sees them: a CR that no LF follows becomes a
//     space, an LF that no CR precedes becomes CRLF.
//   - An end of the connection inside DATA, a stall and a slow sender are
//     errors to whoever reads the body. None of them can look like the end of
//     a message, and no line of a body is ever executed as a command.
//   - Between the final dot and the outcome nothing is written: deadlines and
//     shutdowns speak only where a command is awaited, or inside the body.
//   - Plaintext that came behind STARTTLS is never executed.
//   - A 250 counts as read (Conn.OnRead) only when a later command came of which
//     no octet had reached us when the 250 was written.
//   - Each wait has a deadline, and each buffer, line and count a limit.
//
// One owner per rule. The gate owns the form of a line, the order of commands,
// the commands that concern the connection (STARTTLS, BDAT, unknown verbs) and
// the extent of a message. Package smtpd owns the arguments of MAIL and RCPT
// and what becomes of a message. go-smtp dispatches and keeps the session; no
// octet that a client chose reaches its parsers, since commands are passed on
// in a fixed form (Conn.Argument has the original), and the body is read from
// the gate (Conn.NextBody).
//
// It assumes that one goroutine, go-smtp's, uses a Conn, and that it writes a
// reply to a command before it reads the next one.
package gate
