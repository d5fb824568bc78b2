package smtpclient

import (
	"bufio"
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// What one reply may have. RFC 5321 section 4.5.3.1.5 allows 512 octets per
// line; real peers exceed it. Whatever exceeds these limits is no reply.
const (
	replyLineBytesMax = 4 << 10
	replyLinesMax     = 128
	replyBytesMax     = 32 << 10
	// replyTextBytesMax is what a Reply keeps: it travels in a log entry, once
	// per recipient.
	replyTextBytesMax = 256
)

// A response is a reply with its lines, which only EHLO's reader needs.
type response struct {
	mail.Reply
	lines []string
}

// readResponse reads one reply, whole. r's buffer is replyLineBytesMax long.
func readResponse(r *bufio.Reader) (response, error) {
	var out response
	total := 0
	for n := 1; ; n++ {
		line, err := r.ReadSlice('\n')
		if err == bufio.ErrBufferFull {
			return response{}, fmt.Errorf("%w: line over %d octets", ErrReply, replyLineBytesMax)
		}
		if err != nil {
			return response{}, err
		}
		if total += len(line); total > replyBytesMax || n > replyLinesMax {
			return response{}, fmt.Errorf("%w: over %d lines or %d octets", ErrReply, replyLinesMax, replyBytesMax)
		}
		code, more, text, ok := parseReplyLine(bytes.TrimRight(line, "\r\n"))
		if !ok || n > 1 && code != out.Code {
			return response{}, fmt.Errorf("%w: %q", ErrReply, clean(string(line[:min(len(line), 64)])))
		}
		out.Code = code
		enhanced, rest := cutEnhanced(code, clean(string(text)))
		if n == 1 {
			out.Enhanced = enhanced
		}
		out.lines = append(out.lines, rest)
		if !more {
			out.Text = shorten(strings.Join(out.lines, " "))
			return out, nil
		}
	}
}

// parseReplyLine reads Reply-code and text of RFC 5321 section 4.2.
func parseReplyLine(line []byte) (code int, more bool, text []byte, ok bool) {
	if len(line) < 3 || line[0] < '2' || line[0] > '5' {
		return 0, false, nil, false
	}
	for _, c := range line[:3] {
		if c < '0' || c > '9' {
			return 0, false, nil, false
		}
		code = code*10 + int(c-'0')
	}
	switch {
	case len(line) == 3: // Section 4.2.1: a bare code is to be accepted.
		return code, false, nil, true
	case line[3] == ' ':
		return code, false, line[4:], true
	case line[3] == '-':
		return code, true, line[4:], true
	}
	return 0, false, nil, false
}

// cutEnhanced takes the status code of RFC 2034 off the text. Its class must be
// that of the reply.
func cutEnhanced(code int, text string) (mail.EnhancedCode, string) {
	word, rest, _ := strings.Cut(text, " ")
	parts := strings.Split(word, ".")
	if len(parts) != 3 {
		return mail.EnhancedCode{}, text
	}
	var e mail.EnhancedCode
	for i, p := range parts {
		if p == "" || len(p) > 3 {
			return mail.EnhancedCode{}, text
		}
		for _, c := range []byte(p) {
			if c < '0' || c > '9' {
				return mail.EnhancedCode{}, text
			}
			e[i] = e[i]*10 + int(c-'0')
		}
	}
	if e[0] != code/100 || e[0] == 3 {
		return mail.EnhancedCode{}, text
	}
	return e, rest
}

// clean makes a peer's text safe for a log line and a terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8.RuneError || 0x80 <= r && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// shorten cuts s to replyTextBytesMax at a rune's start.
func shorten(s string) string {
	if len(s) <= replyTextBytesMax {
		return s
	}
	n := replyTextBytesMax
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
