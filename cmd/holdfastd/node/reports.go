package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/holdfast-mx/holdfast/delivery/dsn"
	"github.com/holdfast-mx/holdfast/delivery/route"
	"github.com/holdfast-mx/holdfast/fsm"
	"github.com/holdfast-mx/holdfast/fsm/mail"
)

const (
	// reportEvery is how often the leader looks for reports that are owed.
	reportEvery = 2 * time.Second
	// reportsMax bounds the messages that one look is about.
	reportsMax = 200
	// reportPatience bounds what is done for one message.
	reportPatience = 30 * time.Second
	// reportPause is how long a message waits about which nothing could be reported.
	reportPause = time.Minute
	// failuresMax bounds those that are remembered.
	failuresMax = 1000
)

// A reporter tells senders what became of their mail, where the leader is this node. What
// is owed to whom stands in the queue, so the next leader goes on.
type reporter struct {
	n *Node
	// failed are messages about which nothing could be reported, and until when they
	// wait. Bounded by failuresMax.
	failed map[mail.QueueID]time.Time
}

func newReporter(n *Node) *reporter { return &reporter{n: n, failed: make(map[mail.QueueID]time.Time)} }

// run reports until ctx ends.
func (r *reporter) run(ctx context.Context) {
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		r.n.owed.look(r.n.member.View(), r.n.seams.Now())
		if r.n.member.Leads() {
			r.round(ctx)
		}
	}
}

// round reports about some of the messages that owe it, the oldest first.
func (r *reporter) round(ctx context.Context) {
	view, now, left := r.n.member.View(), r.n.seams.Now(), reportsMax
	defer r.forget(view)
	for m := range view.Owing(0) {
		if ctx.Err() != nil || left == 0 {
			return
		}
		if until, failed := r.failed[m.ID]; failed && now.Before(until) {
			continue
		}
		delete(r.failed, m.ID)
		left--
		if err := r.reportOn(ctx, view, m); err != nil && ctx.Err() == nil {
			r.n.log.Warn("a sender could not be told yet what became of his mail", "queue_id", m.ID.String(), "cause", err)
			r.n.owed.failed(m.ID, err)
			if len(r.failed) < failuresMax {
				r.failed[m.ID] = now.Add(reportPause)
			}
		}
	}
}

// forget drops what is remembered of messages that owe nothing any more, since somebody
// removed them.
func (r *reporter) forget(view *fsm.State) {
	for id := range r.failed {
		if !view.Owes(id) {
			delete(r.failed, id)
		}
	}
}

// reportOn settles all that one message owes.
func (r *reporter) reportOn(ctx context.Context, view *fsm.State, m fsm.Message) error {
	ctx, cancel := context.WithTimeout(ctx, reportPatience)
	defer cancel()
	content, err := r.content(ctx, m)
	if err != nil {
		return fmt.Errorf("read its content: %w", err)
	}
	for _, kind := range []fsm.ReportKind{fsm.ReportFailure, fsm.ReportExpired, fsm.ReportDelay, fsm.ReportRelayed} {
		var fates []dsn.Fate
		for i, st := range m.Recipients {
			if st.Report == kind {
				fates = append(fates, r.fate(view, m, i))
			}
		}
		if len(fates) == 0 {
			continue
		}
		report := dsn.Report{
			// The kinds have the same numbers.
			Kind: dsn.Kind(kind), Node: string(r.n.config.Hostname), At: r.n.seams.Now().Unix(), Own: r.n.hosts(),
			Original: dsn.Original{ID: m.ID, Envelope: m.Envelope, Content: content, Size: m.Body.Size, PossibleDuplicate: m.PossibleDuplicate},
			Fates:    fates,
		}
		if err := r.issue(ctx, view, m.ID, kind, report); err != nil {
			return err
		}
	}
	return nil
}

// content reads the first octets of a message.
func (r *reporter) content(ctx context.Context, m fsm.Message) ([]byte, error) {
	body, err := r.n.member.OpenBody(ctx, m.Body)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	return io.ReadAll(io.LimitReader(body, int64(dsn.ContentBytesMax)))
}

func (r *reporter) fate(view *fsm.State, m fsm.Message, recipient int) dsn.Fate {
	f := dsn.Fate{Recipient: recipient, Reply: m.Recipients[recipient].Reply}
	for _, p := range m.Parts {
		if p.Domain == m.Envelope.Recipients[recipient].Domain && p.ExpiresAt > 0 {
			left := time.Duration(p.ExpiresAt-view.Now()) * time.Millisecond
			f.RetryUntil = r.n.seams.Now().Add(max(0, left)).Unix()
		}
	}
	return f
}

// issue proposes the report about those of its recipients for whom one is due, and that
// none is made for the others.
func (r *reporter) issue(ctx context.Context, view *fsm.State, id mail.QueueID, kind fsm.ReportKind, report dsn.Report) error {
	var due []int
	withheld := make(map[string][]int)
	var reasons []string
	for i, verdict := range dsn.Judge(report) {
		recipient := report.Fates[i].Recipient
		if verdict == dsn.Due {
			due = append(due, recipient)
			continue
		}
		why := verdict.String()
		if _, known := withheld[why]; !known {
			reasons = append(reasons, why)
		}
		withheld[why] = append(withheld[why], recipient)
	}
	for _, why := range reasons {
		if err := r.propose(ctx, fsm.IssueReport{Message: id, Kind: kind, Recipients: withheld[why], Reason: why}, nil); err != nil {
			return err
		}
		r.n.log.Info("no report to the sender", "queue_id", id.String(), "kind", kind.String(), "reason", why)
	}
	if len(due) == 0 {
		return nil
	}
	var err error
	if report.ID, err = r.n.member.Mint(); err != nil {
		return err
	}
	message, ok := dsn.Compose(report)
	if !ok {
		return errors.New("no report for those for whom one is due")
	}
	to := &message.Envelope.Recipients[0]
	if _, relayed := view.Domain(to.Path.Domain()); !relayed {
		to.Domain = fsm.OutboundDomain(to.Path.Domain())
	}
	err = r.propose(ctx, fsm.IssueReport{
		Message: id, Kind: kind, Recipients: due,
		Report: fsm.Accept{Envelope: message.Envelope, Body: mail.BodyRef{ID: report.ID}},
	}, mail.NewBody(message.Content))
	if err == nil {
		r.n.log.Info("the sender is told", "queue_id", id.String(), "kind", kind.String(), "report", report.ID.String())
	}
	return err
}

// propose has a command applied. One that is refused is out of date: the queue has
// changed, and is looked at again.
func (r *reporter) propose(ctx context.Context, a fsm.IssueReport, body *mail.Body) error {
	result, err := r.n.member.Issue(ctx, a, body)
	if err == nil && result.Verdict != fsm.Done {
		err = errors.New(result.Text)
	}
	return err
}

// hosts are the host names of the cluster's members.
func (n *Node) hosts() []mail.Domain {
	hosts := []mail.Domain{n.config.Hostname}
	for _, m := range n.directory.Mailhosts() {
		if d, err := mail.ParseDomain(m.Hostname); err == nil && !slices.Contains(hosts, d) {
			hosts = append(hosts, d)
		}
	}
	return hosts
}

// An outboundRouter finds the way of reports beside that of mail.
type outboundRouter struct {
	*route.Router
	smarthost string // host:port, "" for the MX records of whom a report goes to
}

// Route is route.Router's, for outbound domains too.
func (o outboundRouter) Route(ctx context.Context, d fsm.Domain) ([]route.Hop, error) {
	host, outbound := d.Outbound()
	switch {
	case !outbound:
	case o.smarthost == "":
		d.Name = host
	default:
		name, port, err := net.SplitHostPort(o.smarthost)
		if err != nil {
			return nil, fmt.Errorf("smarthost: %w", err)
		}
		number, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("smarthost: %w", err)
		}
		d.Name, d.MX, d.Targets = host, false, []fsm.Target{{Host: name, Port: uint16(number)}}
	}
	return o.Router.Route(ctx, d)
}
