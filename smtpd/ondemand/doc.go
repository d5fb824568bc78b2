// Package ondemand serves On-Demand Mail Relay (RFC 2645): a primary that no node can
// reach, since it has no address of its own or a changing one, connects to a node, proves
// who it is, and says ATRN. Then the roles turn: on the same connection the node is the
// client, and delivers what waits for the primary's domains.
//
// The package is the dialogue up to there: EHLO, STARTTLS, AUTH, ATRN and the few commands
// that belong to no mail. It promises that nobody is asked for a password in the clear,
// that passwords cannot be tried at will, and that a connection is handed over only when
// nothing that came over it is left unread. Whom a name, password or key lets call for
// what, and the delivery, are its Mail's. It assumes that it is given TLS, and refuses to
// take mail.
//
// go-smtp does not hand a connection over, and the gate in front of it does not let go of
// what it reads ahead; so this small server is our own, on a listener of its own.
package ondemand
