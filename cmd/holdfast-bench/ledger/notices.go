package ledger

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	netmail "net/mail"
	"net/textproto"
	"slices"
	"strings"
)

// Tell says of which relay domains senders are told what was refused for good; of no
// other is anybody.
func (l *Ledger) Tell(domains ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tells = make(map[string]bool)
	for _, d := range domains {
		l.tells[strings.ToLower(d)] = true
	}
}

// Due reports whether the sender of a recipient's message is to be told when that is
// refused for good.
func (l *Ledger) Due(recipient string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := l.pairs[canonical(recipient)]
	return ok && l.due(canonical(recipient), p) == ""
}

// Refused reports whether a primary refused a recipient for good.
func (l *Ledger) Refused(recipient string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, ok := l.pairs[canonical(recipient)]
	return ok && p.refusals > 0
}

// RefusedOf counts the refusals of recipients of a domain.
func (l *Ledger) RefusedOf(domain string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for r, p := range l.pairs {
		if strings.HasSuffix(r, "@"+strings.ToLower(domain)) {
			n += p.refusals
		}
	}
	return n
}

// due says why a sender is not to be told, "" if he is. It needs mu.
func (l *Ledger) due(recipient string, p *pair) string {
	switch domain := recipient[strings.LastIndexByte(recipient, '@')+1:]; {
	case !l.tells[domain]:
		return "nobody is told of " + domain
	case p.reversePath == "":
		return "it has no sender"
	case p.automatic:
		return "it is automatic"
	// RFC 3461 section 4.1: who says nothing wants to hear of failures.
	case p.notify != "" && !strings.Contains(strings.ToUpper(p.notify), "FAILURE"):
		return "NOTIFY=" + p.notify
	}
	return ""
}

// failed counts the notices that say so.
func (p *pair) failed() (n int) {
	for _, notice := range p.notices {
		if notice.Action == "failed" {
			n++
		}
	}
	return n
}

// Notices is what CheckNotices found. All numbers but Extra and Bound count pairs.
type Notices struct {
	// Due pairs were accepted and refused by the primary, and their senders are to
	// be told; of them Told were, and Untold were not.
	Due    int `json:"due"`
	Told   int `json:"told"`
	Untold int `json:"untold"`
	// Silent pairs were accepted and refused, and nobody is to be told.
	Silent int `json:"silent"`
	// Undue counts pairs with a notice that nobody is to get, or that went to
	// somebody else, or that says what is not so.
	Undue int `json:"undue"`
	// Both counts pairs that arrived, though their senders were told that they failed or
	// though they are held, and nothing excuses a second end.
	Both int `json:"both"`
	// Extra, Bound and TooMany are those of Copies, of notices.
	Extra   int      `json:"extra"`
	Bound   int      `json:"bound"`
	TooMany int      `json:"too_many"`
	Cases   []string `json:"cases,omitempty"`
}

// CheckNotices judges who was told: each sender to whom that is due once about each
// recipient that the primary refused for good, from the null reverse-path, and nobody
// else. Another copy has the excuses of CheckCopies, at the host that reports go to, and
// so has what arrives beside a notice: a recipient ends once.
func (l *Ledger) CheckNotices(interrupted Interrupted) Notices {
	l.mu.Lock()
	defer l.mu.Unlock()
	var n Notices
	named := map[string]int{}
	fault := func(kind, recipient, format string, args ...any) {
		if named[kind]++; named[kind] <= casesMax {
			n.Cases = append(n.Cases, kind+" "+recipient+": "+fmt.Sprintf(format, args...))
		}
	}
	for _, r := range slices.Sorted(maps.Keys(l.pairs)) {
		p := l.pairs[r]
		silent := l.due(r, p)
		if len(p.ok) > 0 && p.refusals > 0 {
			switch {
			case silent != "":
				n.Silent++
			case len(p.notices) == 0 && len(p.arrivals) > 0:
				// The refusal was not recorded in time, and it was taken later.
			case len(p.notices) == 0:
				n.Due++
				n.Untold++
				fault("untold", r, "refused %d times, queue id %s", p.refusals, strings.Join(p.ok, " "))
			default:
				n.Due++
				n.Told++
			}
		}
		if wrong := p.wrongNotice(silent); wrong != "" {
			n.Undue++
			fault("undue notice", r, "%s", wrong)
			continue
		}
		if p.failed()+p.held > 0 && len(p.arrivals) > 0 {
			cut := 0
			for _, a := range p.arrivals {
				if interrupted(a, false) { // the other end came behind it
					cut++
				}
			}
			if excused := len(p.unknown) + len(p.unread) + cut; len(p.arrivals) > excused {
				n.Both++
				fault("two ends", r, "told %d times, held %d times, excused %d, and it arrived: %s", p.failed(), p.held, excused, p.story())
			}
		}
		if len(p.notices) == 0 {
			continue
		}
		var reports []Arrival
		for _, notice := range p.notices {
			reports = append(reports, Arrival{Recipient: notice.To, QueueID: notice.QueueID, Peer: notice.Peer, At: notice.At})
		}
		e := excuse(reports, p.noticesUnread, len(p.unknown), interrupted)
		n.Extra += len(reports) - 1
		n.Bound += e.bound()
		if e.tooMany {
			n.TooMany++
			fault("too many notices", r, "%v", e)
		}
	}
	return n
}

// wrongNotice says what is wrong with a pair's notices, "" if nothing is. silent is why
// there must be none.
func (p *pair) wrongNotice(silent string) string {
	for _, n := range p.notices {
		switch {
		case !p.sent:
			return "nobody sent to it, and <" + n.To + "> was told"
		case silent != "":
			return "<" + n.To + "> was told, though " + silent
		case n.Action != "failed":
			return "it is said to be " + n.Action
		case canonical(n.To) != canonical(p.reversePath):
			return fmt.Sprintf("sent from <%s>, told was <%s>", p.reversePath, n.To)
		case n.ReversePath != "":
			return "the report is from <" + n.ReversePath + ">"
		case p.refusals == 0:
			return "it is said to have failed, and the primary did not refuse it"
		case len(p.ok)+len(p.unknown) == 0:
			return "it was never accepted"
		}
	}
	return ""
}

// ReadNotices reads a report (RFC 3464, RFC 6522): one Notice for each recipient that
// it is about, as far as its content tells.
func ReadNotices(content []byte) ([]Notice, error) {
	m, err := netmail.ReadMessage(strings.NewReader(string(content)))
	if err != nil {
		return nil, fmt.Errorf("report: %w", err)
	}
	kind, parameters, err := mime.ParseMediaType(m.Header.Get("Content-Type"))
	if err != nil || kind != "multipart/report" || parameters["report-type"] != "delivery-status" && parameters["report-type"] != "global-delivery-status" {
		return nil, fmt.Errorf("report: its type is %q: %w", m.Header.Get("Content-Type"), errors.Join(err, errNoReport))
	}
	for parts := multipart.NewReader(m.Body, parameters["boundary"]); ; {
		p, err := parts.NextPart()
		if err != nil {
			return nil, fmt.Errorf("report: no delivery status: %w", err)
		}
		switch kind, _, _ := mime.ParseMediaType(p.Header.Get("Content-Type")); kind {
		case "message/delivery-status", "message/global-delivery-status":
			return readStatus(decoded(p))
		}
	}
}

var errNoReport = errors.New("that is no report")

func decoded(p *multipart.Part) io.Reader {
	if strings.EqualFold(p.Header.Get("Content-Transfer-Encoding"), "base64") {
		return base64.NewDecoder(base64.StdEncoding, p)
	}
	return p // NextPart has decoded quoted-printable
}

// readStatus reads the fields of a message, and then those of each recipient (RFC 3464
// section 2.1).
func readStatus(r io.Reader) ([]Notice, error) {
	in := textproto.NewReader(bufio.NewReader(r))
	if _, err := in.ReadMIMEHeader(); err != nil {
		return nil, fmt.Errorf("report: fields of the message: %w", err)
	}
	var all []Notice
	for {
		h, err := in.ReadMIMEHeader()
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("report: fields of a recipient: %w", err)
		}
		if len(h) > 0 {
			_, recipient, ok := strings.Cut(h.Get("Final-Recipient"), ";")
			if !ok || h.Get("Action") == "" {
				return nil, fmt.Errorf("report: a recipient %q with the action %q", h.Get("Final-Recipient"), h.Get("Action"))
			}
			all = append(all, Notice{Recipient: strings.TrimSpace(recipient), Action: strings.ToLower(h.Get("Action")), Original: h.Get("Final-Log-Id")})
		}
		if err != nil {
			break
		}
	}
	if len(all) == 0 {
		return nil, errors.New("report: it is about nobody")
	}
	return all, nil
}
