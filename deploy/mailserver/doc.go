// Package mailserver runs the mail servers that Holdfast stands between: Postfix,
// Exim and OpenSMTPD, each with configuration, queue and log of its own in a
// directory of its user's, as a primary that keeps all mail for its domains in a
// maildir, or as a sender that hands on all that it takes. It reads what a primary
// wrote, and what a sender's log says became of each recipient.
//
// Postfix is the installed package's. Debian's packages of the others exclude it, so
// they are unpacked (.ci/mailservers) and each runs in a root directory that is this
// machine's with its package laid over it. Nothing that is installed is changed.
//
// It needs Linux, root, and a process namespace of its user's own (package cell), in
// which it looks for the processes of a server and ends them.
package mailserver
