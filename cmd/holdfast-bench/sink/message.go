package sink

import (
	"fmt"
	"time"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// A Message is what one transaction brought.
type Message struct {
	ReversePath string
	Recipients  []string
	Content     []byte
	QueueID     string // as in Arrival
	Peer        string
	At          time.Time
}

// Notices reads the message as a report to senders (RFC 3464), which tells each of its
// own recipients of each recipient that it is about. It fails where the message is no
// report.
func (m Message) Notices() ([]ledger.Notice, error) {
	about, err := ledger.ReadNotices(m.Content)
	if err != nil {
		return nil, fmt.Errorf("mail from <%s> to %v that is no report: %w", m.ReversePath, m.Recipients, err)
	}
	var all []ledger.Notice
	for _, n := range about {
		for _, to := range m.Recipients {
			n.ReversePath, n.To, n.QueueID, n.Peer, n.At = m.ReversePath, to, m.QueueID, m.Peer, m.At
			all = append(all, n)
		}
	}
	return all, nil
}
