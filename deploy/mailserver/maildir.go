package mailserver

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/mail"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// A Maildir is one that a primary keeps mail in. It is not safe for concurrent use.
type Maildir struct {
	Path string
	// Take has a file moved from new to cur when it was read, as a mail reader does.
	Take bool
	seen map[string]bool
	// Unread are the files that Read came upon last and that are no message, with the
	// time of each: a server that is killed may leave one.
	Unread map[string]time.Time
}

// A Kept is a file of a maildir: what a primary wrote for one recipient. Its At is
// what the primary's own Received field says of when it began to take the message,
// before the final dot, in whole seconds.
type Kept struct {
	ledger.Arrival
	File string
	// Wrote is when the file was written: not before the 250 was due.
	Wrote time.Time
}

// Read returns what was not returned before.
func (m *Maildir) Read() (all []Kept, err error) {
	if m.seen == nil {
		m.seen = map[string]bool{}
	}
	entries, err := os.ReadDir(filepath.Join(m.Path, "new"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	m.Unread = map[string]time.Time{}
	for _, e := range entries {
		if m.seen[e.Name()] {
			continue
		}
		name := filepath.Join(m.Path, "new", e.Name())
		data, err := os.ReadFile(name)
		if err != nil {
			return all, err
		}
		info, err := os.Stat(name)
		if err != nil {
			return all, err
		}
		a, err := ParseKept(data)
		if err != nil {
			m.Unread[name] = info.ModTime()
			continue
		}
		if m.Take {
			cur := filepath.Join(m.Path, "cur", e.Name()+":2,S")
			if err := os.Rename(name, cur); err != nil {
				return all, err
			}
			name = cur
		} else {
			m.seen[e.Name()] = true
		}
		all = append(all, Kept{Arrival: a, File: name, Wrote: info.ModTime()})
	}
	return all, nil
}

// Len is how many messages it returned.
func (m *Maildir) Len() int { return len(m.seen) }

// ParseKept reads a file that a mail server wrote: fields of its own, its Received
// field, then the message, its line ends as LF.
func ParseKept(data []byte) (ledger.Arrival, error) {
	var a ledger.Arrival
	own := map[string]func(string){
		"return-path":   func(v string) { a.ReversePath = v },
		"x-original-to": func(string) {},                    // Postfix
		"delivered-to":  func(v string) { a.Recipient = v }, // Postfix, OpenSMTPD
		"envelope-to":   func(v string) { a.Recipient = v }, // Exim
	}
	for {
		line, rest, _ := bytes.Cut(data, []byte("\n"))
		name, value, _ := strings.Cut(string(line), ": ")
		set, ok := own[strings.ToLower(name)]
		if !ok {
			break
		}
		set(strings.Trim(value, "<>"))
		data = rest
	}
	if a.Recipient == "" {
		return a, fmt.Errorf("no Delivered-To in %.200q", data)
	}
	trace, data := cutReceived(data)
	var err error
	if a.Peer, a.At, err = parseReceived(trace); err != nil {
		return a, err
	}
	var c ledger.Cutter
	for line := range bytes.Lines(data) {
		c.Line(append(bytes.TrimSuffix(line, []byte("\n")), '\r', '\n'), true)
	}
	a.Cuts, a.QueueID = c.Finish(), c.QueueID()
	return a, nil
}

// cutReceived takes the first field off.
func cutReceived(data []byte) (field string, rest []byte) {
	at := 0
	for at < len(data) {
		end := bytes.IndexByte(data[at:], '\n')
		if end < 0 {
			return string(data), nil
		}
		at += end + 1
		if at < len(data) && data[at] != ' ' && data[at] != '\t' {
			break
		}
	}
	return string(data[:at]), data[at:]
}

var clientAddress = regexp.MustCompile(`\[([0-9.]+)\]`)

// parseReceived finds who gave the message, and when (RFC 5321 section 4.4).
func parseReceived(field string) (peer string, at time.Time, err error) {
	client := clientAddress.FindStringSubmatch(field)
	semicolon := strings.LastIndexByte(field, ';')
	if !strings.HasPrefix(field, "Received: ") || client == nil || semicolon < 0 {
		return "", at, fmt.Errorf("no Received field of the server's own: %.300q", field)
	}
	at, err = mail.ParseDate(strings.Join(strings.Fields(field[semicolon+1:]), " "))
	if began, ok := eximBegan(field); ok && began.Before(at) {
		at = began
	}
	return client[1] + ":0", at, err
}

var eximID = regexp.MustCompile(`\bid ([0-9A-Za-z]{6})-[0-9A-Za-z]+-[0-9A-Za-z]+`)

// eximBegan is when Exim began to take a message. Its Received field has the time
// when it had all of it, and the first six characters of its id that time, in base 62.
func eximBegan(field string) (began time.Time, ok bool) {
	id := eximID.FindStringSubmatch(field)
	if id == nil || !strings.Contains(field, "(Exim ") {
		return began, false
	}
	var seconds int64
	for _, c := range id[1] {
		seconds = seconds*62 + int64(strings.IndexRune("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", c))
	}
	return time.Unix(seconds, 0), true
}
