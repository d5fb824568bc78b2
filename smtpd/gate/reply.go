package gate

import "github.com/holdfast-mx/holdfast/fsm/mail"

// The replies that the gate gives by itself. All of them speak of the
// connection or of the form and order of commands; what a mailbox, a message
// or an error is answered stands in smtpd/reply.go.
var (
	replyVerify     = mail.Reply{Code: 252, Enhanced: mail.EnhancedCode{2, 5, 0}, Text: "Cannot VRFY user, but will take mail for it"} // RFC 5321 section 3.5.3
	replyHelp       = mail.Reply{Code: 214, Enhanced: mail.EnhancedCode{2, 0, 0}, Text: "See RFC 5321"}
	replyStartTLS   = mail.Reply{Code: 220, Enhanced: mail.EnhancedCode{2, 0, 0}, Text: "Ready to start TLS"}
	replySenderOK   = mail.Reply{Code: 250, Enhanced: mail.EnhancedCode{2, 1, 0}, Text: "Sender ok"}
	replyRcptOK     = mail.Reply{Code: 250, Enhanced: mail.EnhancedCode{2, 1, 5}, Text: "Recipient ok"}
	replyGoAhead    = mail.Reply{Code: 354, Text: "End data with <CR><LF>.<CR><LF>"}
	replyUnknown    = mail.Reply{Code: 500, Enhanced: mail.EnhancedCode{5, 5, 2}, Text: "Command not recognized"}
	replyLineLong   = mail.Reply{Code: 500, Enhanced: mail.EnhancedCode{5, 5, 2}, Text: "Line too long"}
	replyControl    = mail.Reply{Code: 501, Enhanced: mail.EnhancedCode{5, 5, 2}, Text: "Control character in command"}
	replyNoArgument = mail.Reply{Code: 501, Enhanced: mail.EnhancedCode{5, 5, 4}, Text: "No argument allowed"}
	replyArgument   = mail.Reply{Code: 501, Enhanced: mail.EnhancedCode{5, 5, 4}, Text: "Invalid argument"}
	replyNotHere    = mail.Reply{Code: 502, Enhanced: mail.EnhancedCode{5, 5, 1}, Text: "Command not implemented"}
	replyHelloFirst = mail.Reply{Code: 503, Enhanced: mail.EnhancedCode{5, 5, 1}, Text: "Send EHLO first"}
	replyNested     = mail.Reply{Code: 503, Enhanced: mail.EnhancedCode{5, 5, 1}, Text: "Transaction already open"}
	replyMailFirst  = mail.Reply{Code: 503, Enhanced: mail.EnhancedCode{5, 5, 1}, Text: "Send MAIL first"}
	replyTLSTwice   = mail.Reply{Code: 503, Enhanced: mail.EnhancedCode{5, 5, 1}, Text: "TLS already active"}
	replyNoRcpt     = mail.Reply{Code: 554, Enhanced: mail.EnhancedCode{5, 5, 1}, Text: "No valid recipients"}
	replyPipelined  = mail.Reply{Code: 554, Enhanced: mail.EnhancedCode{5, 5, 0}, Text: "Plaintext behind STARTTLS"} // RFC 3207 section 4.2
	replyNotSMTP    = mail.Reply{Code: 421, Enhanced: mail.EnhancedCode{4, 7, 0}, Text: "This is an SMTP server"}
	replyErrors     = mail.Reply{Code: 421, Enhanced: mail.EnhancedCode{4, 7, 0}, Text: "Too many errors"}
	replyJunk       = mail.Reply{Code: 421, Enhanced: mail.EnhancedCode{4, 7, 0}, Text: "Too many commands without mail"}
	replyCrowded    = mail.Reply{Code: 421, Enhanced: mail.EnhancedCode{4, 7, 0}, Text: "Too many connections"}
	replyDraining   = mail.Reply{Code: 421, Enhanced: mail.EnhancedCode{4, 3, 2}, Text: "Service shutting down"}
	replyTimeout    = mail.Reply{Code: 421, Enhanced: mail.EnhancedCode{4, 4, 2}, Text: "Timeout"}
	replySlow       = mail.Reply{Code: 421, Enhanced: mail.EnhancedCode{4, 4, 2}, Text: "Data comes too slowly"}
)
