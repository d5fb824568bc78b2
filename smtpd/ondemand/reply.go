package ondemand

import "github.com/holdfast-mx/holdfast/fsm/mail"

func reply(code, class, subject, detail int, text string) mail.Reply {
	return mail.Reply{Code: code, Enhanced: mail.EnhancedCode{class, subject, detail}, Text: text}
}

// The replies. Those to ATRN are of RFC 2645 section 5.2.1, those to AUTH of RFC 4954
// section 6, those to STARTTLS of RFC 3207.
var (
	replyOK         = reply(250, 2, 0, 0, "OK")
	replyBye        = reply(221, 2, 0, 0, "Bye")
	replyStartTLS   = reply(220, 2, 0, 0, "Ready to start TLS")
	replyTurning    = reply(250, 2, 0, 0, "OK now reversing the connection")
	replyKnown      = reply(235, 2, 7, 0, "Authentication succeeded")
	replyNotAllowed = reply(450, 4, 7, 1, "ATRN request refused")
	replyBusy       = reply(450, 4, 5, 0, "ATRN request refused: the mail is being called for already")
	replyNotNow     = reply(451, 4, 3, 0, "Unable to process ATRN request now")
	replyNoMail     = reply(453, 4, 0, 0, "You have no mail")
	replyAuthLater  = reply(454, 4, 7, 0, "Temporary authentication failure")
	replyUnknown    = reply(500, 5, 5, 2, "Command not recognized")
	replyLineLong   = reply(500, 5, 5, 2, "Line too long")
	replyArgument   = reply(501, 5, 5, 4, "Invalid argument")
	replyEncoding   = reply(501, 5, 5, 2, "Cannot decode")
	replyCancelled  = reply(501, 5, 7, 0, "Authentication cancelled")
	replyControl    = reply(501, 5, 5, 2, "Control character in command")
	replyNotHere    = reply(502, 5, 5, 1, "Command not implemented")
	replyHelloFirst = reply(503, 5, 5, 1, "Send EHLO first")
	replyTLSTwice   = reply(503, 5, 5, 1, "TLS already active")
	replyAuthTwice  = reply(503, 5, 5, 1, "Already authenticated")
	replyMechanism  = reply(504, 5, 5, 4, "Unrecognized authentication mechanism")
	replyAuthFirst  = reply(530, 5, 7, 0, "Authentication required")
	replyTLSFirst   = reply(530, 5, 7, 0, "Must issue a STARTTLS command first")
	replyWrong      = reply(535, 5, 7, 8, "Authentication credentials invalid")
	replyEncrypt    = reply(538, 5, 7, 11, "Encryption required for authentication")
	replyPipelined  = reply(554, 5, 5, 0, "Nothing may follow that command before its reply")
	replyCrowded    = reply(421, 4, 7, 0, "Too many connections")
	replyFailures   = reply(421, 4, 7, 0, "Too many failed authentications")
	replyErrors     = reply(421, 4, 7, 0, "Too many errors")
	replyDraining   = reply(421, 4, 3, 2, "Service shutting down")
	replyNotReady   = reply(421, 4, 3, 2, "Cannot deliver mail now, try again later")
	replyTimeout    = reply(421, 4, 4, 2, "Timeout")
	replyInternal   = reply(421, 4, 3, 0, "Internal error, closing")
)
