package ledger

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
)

// lineMax bounds one line of a ledger file when it is read.
const lineMax = 1 << 20

// A pair is one recipient of one message, and all that is known of it.
type pair struct {
	sent        bool // an intent was recorded: octets and reversePath say what
	reversePath string
	octets      Octets           // every attempt sends the same
	ok          []string         // the queue ids of the 250s
	fail        int              // attempts that were refused
	unknown     map[int]struct{} // attempts with an intent and no certain outcome
	dots        []dot            // of all attempts, in the order in which they were recorded
	unread      []Unread         // copies whose 250 nobody may have read
	arrivals    []Arrival

	notify        string
	automatic     bool
	refusals      int // by a primary, for good
	held          int // times it was seen held
	notices       []Notice
	noticesUnread []Unread // notices whose report's 250 nobody may have read
}

// A dot is an attempt that came as far as the final dot.
type dot struct {
	attempt int
	at      time.Time // when it was about to be written
	refused bool
}

// A report is known by who got it, and by its queue id where it shows one.
type report struct{ to, queueID string }

// A Ledger joins what was sent with what arrived.
type Ledger struct {
	mu    sync.Mutex
	pairs map[string]*pair
	// tells are the relay domains of which senders are told; told is about whom each
	// report was.
	tells map[string]bool
	told  map[report][]string
	out   *os.File
	sync  bool
	err   error // the first error of out: a ledger that cannot write is void
}

// New returns a ledger that lives in memory only.
func New() *Ledger {
	return &Ledger{pairs: make(map[string]*pair), told: make(map[report][]string)}
}

// Options say how a ledger writes its file.
type Options struct {
	// Sync makes each record durable before the call returns. Needed only
	// where the recording process's own host may lose power.
	Sync bool
}

// Create makes the file path, or appends to it, and returns a ledger that
// holds what was in it and writes each further record to it.
func Create(path string, o Options) (*Ledger, error) {
	l := New()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	err = l.Read(f)
	if err == nil {
		err = cutTorn(f)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("read ledger %s: %w", path, err)
	}
	l.out, l.sync = f, o.Sync
	return l, nil
}

// cutTorn takes the last line off the file when it has no line feed, so that
// the next record does not run into it.
func cutTorn(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	tail := make([]byte, min(info.Size(), lineMax))
	if _, err := f.ReadAt(tail, info.Size()-int64(len(tail))); err != nil {
		return err
	}
	torn := len(tail) - 1 - bytes.LastIndexByte(tail, '\n')
	if torn == 0 {
		return nil
	}
	return f.Truncate(info.Size() - int64(torn))
}

// Load reads the named files into one ledger in memory.
func Load(paths ...string) (*Ledger, error) {
	l := New()
	for _, path := range paths {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("open ledger: %w", err)
		}
		err = l.Read(f)
		f.Close()
		if err != nil {
			return nil, fmt.Errorf("read ledger %s: %w", path, err)
		}
	}
	return l, nil
}

// Read takes the records of a file in. A last line without its line feed is
// the record that a killed process was writing, and is passed over.
func (l *Ledger) Read(r io.Reader) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for n := 1; ; n++ {
		line, err := readLine(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		var rec record
		if err := json.Unmarshal(line, &rec); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		l.mu.Lock()
		l.enter(rec)
		l.mu.Unlock()
	}
}

func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		piece, err := in.ReadSlice('\n')
		if len(line)+len(piece) > lineMax {
			return nil, fmt.Errorf("longer than %d octets", lineMax)
		}
		line = append(line, piece...)
		if err == nil {
			return line, nil
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return nil, err
		}
	}
}

// Close closes the file, if there is one.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out == nil {
		return l.err
	}
	err := l.out.Close()
	l.out = nil
	return errors.Join(l.err, err)
}

// Intent records that the final dot is about to be written. When it fails the
// dot must not be written.
func (l *Ledger) Intent(i Intent) error { return l.add(record{Intent: &i}) }

// Outcome records how an attempt ended.
func (l *Ledger) Outcome(o Outcome) error { return l.add(record{Outcome: &o}) }

// Arrival records that a primary took a message. When it fails the primary
// must not answer 250.
func (l *Ledger) Arrival(a Arrival) error { return l.add(record{Arrival: &a}) }

// Unread records that the 250 for an arrival may not have been read.
func (l *Ledger) Unread(u Unread) error { return l.add(record{Unread: &u}) }

// Refusal records that a primary refused a recipient. When it fails the primary must
// not say so.
func (l *Ledger) Refusal(r Refusal) error { return l.add(record{Refusal: &r}) }

// Notice records that a sender was told. When it fails the report must not be taken.
func (l *Ledger) Notice(n Notice) error { return l.add(record{Notice: &n}) }

// Held records that a recipient is held at the end.
func (l *Ledger) Held(h Held) error { return l.add(record{Held: &h}) }

func (l *Ledger) add(rec record) error {
	line, err := json.Marshal(rec)
	if err != nil {
		return fmt.Errorf("encode ledger record: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		return l.err
	}
	if l.out != nil {
		if l.err = l.write(append(line, '\n')); l.err != nil {
			return l.err
		}
	}
	l.enter(rec)
	return nil
}

func (l *Ledger) write(line []byte) error {
	if _, err := l.out.Write(line); err != nil {
		return fmt.Errorf("write ledger: %w", err)
	}
	if l.sync {
		if err := l.out.Sync(); err != nil {
			return fmt.Errorf("sync ledger: %w", err)
		}
	}
	return nil
}

// enter changes the pairs in memory. It needs mu.
func (l *Ledger) enter(rec record) {
	switch {
	case rec.Intent != nil:
		for _, r := range rec.Intent.Recipients {
			p := l.pair(r)
			p.sent = true
			p.unsure(rec.Intent.Attempt)
			p.dots = append(p.dots, dot{attempt: rec.Intent.Attempt, at: rec.Intent.At})
			p.octets, p.reversePath = rec.Intent.Octets, rec.Intent.ReversePath
			p.notify, p.automatic = rec.Intent.Notify, rec.Intent.Automatic
		}
	case rec.Outcome != nil:
		for _, r := range rec.Outcome.Recipients {
			p := l.pair(r)
			switch rec.Outcome.Result {
			case OK:
				p.ok = append(p.ok, rec.Outcome.QueueID)
				delete(p.unknown, rec.Outcome.Attempt)
			case Fail:
				p.fail++
				delete(p.unknown, rec.Outcome.Attempt)
				p.refuse(rec.Outcome.Attempt)
			case Info:
				p.unsure(rec.Outcome.Attempt)
			}
		}
	case rec.Arrival != nil:
		p := l.pair(rec.Arrival.Recipient)
		p.arrivals = append(p.arrivals, *rec.Arrival)
	case rec.Unread != nil && l.told[report{canonical(rec.Unread.Recipient), rec.Unread.QueueID}] != nil:
		for _, recipient := range l.told[report{canonical(rec.Unread.Recipient), rec.Unread.QueueID}] {
			p := l.pair(recipient)
			p.noticesUnread = append(p.noticesUnread, *rec.Unread)
		}
	case rec.Unread != nil:
		p := l.pair(rec.Unread.Recipient)
		p.unread = append(p.unread, *rec.Unread)
	case rec.Refusal != nil:
		l.pair(rec.Refusal.Recipient).refusals++
	case rec.Held != nil:
		l.pair(rec.Held.Recipient).held++
	case rec.Notice != nil:
		n := *rec.Notice
		p := l.pair(n.Recipient)
		p.notices = append(p.notices, n)
		if key := (report{canonical(n.To), n.QueueID}); !slices.Contains(l.told[key], n.Recipient) {
			l.told[key] = append(l.told[key], n.Recipient)
		}
	}
}

func (l *Ledger) pair(recipient string) *pair {
	key := canonical(recipient)
	p := l.pairs[key]
	if p == nil {
		p = &pair{}
		l.pairs[key] = p
	}
	return p
}

func (p *pair) unsure(attempt int) {
	if p.unknown == nil {
		p.unknown = make(map[int]struct{})
	}
	p.unknown[attempt] = struct{}{}
}

// refuse notes that an attempt's dot was refused, if it came that far.
func (p *pair) refuse(attempt int) {
	for i := range p.dots {
		if p.dots[i].attempt == attempt {
			p.dots[i].refused = true
		}
	}
}

// canonical folds the case of the domain, which means nothing (RFC 5321
// section 2.4), and leaves the local part alone, whose case must survive.
func canonical(address string) string {
	at := strings.LastIndexByte(address, '@')
	if at < 0 {
		return address
	}
	return address[:at] + strings.ToLower(address[at:])
}
