package fsm

import (
	"fmt"
	"iter"

	"github.com/holdfast-mx/holdfast/fsm/mail"
)

// Limits of one command. What breaks one is Invalid.
const (
	recipientsMax      = 1000          // of one message
	leaseMessagesMax   = 1024          // of one lease
	domainsMax         = 10_000        // relay domains of one cluster
	targetsMax         = 16            // of one relay domain
	nodeNameBytesMax   = 255           // of a NodeName
	fingerprintsMax    = 100_000       // upper limit of Settings.FingerprintMax
	fingerprintLifeMax = 24 * hour     // upper limit of Settings.FingerprintLife
	waitMax            = 7 * 24 * hour // upper limit of the other settings that are times
	lifetimeMax        = 366 * 24 * hour
	connectionsMax     = 1000        // upper limit of Domain.ConnectionsMax
	networksMax        = 16          // of one relay domain
	stsIDBytesMax      = 32          // of an STSPolicy; RFC 8461 section 3.1
	pinsMax            = 32          // of one TLSPolicy
	namesMax           = 32          // of one TLSPolicy
	authoritiesMax     = 48 << 10    // octets of one TLSPolicy
	votersMax          = 64          // upper limit of Settings.Voters
	waitsPerEntryMax   = 1 << 20     // upper limit of Settings.WaitsPerEntry
	tickMax            = 60 * second // log time advances by no more per Tick
	failedNodesMax     = 64          // nodes remembered as having failed to reach a next hop
	bodyBytesMax       = 1 << 40     // keeps the sum over all messages within an int64
	nowMax             = 1 << 60     // keeps sums of log times within an int64
	envelopeBytesMax   = 64 << 10    // of an encoded envelope; the entry is bounded by as much
)

// What one Tick does at most where mail has outlived its domain's lifetime: the next
// Tick goes on.
const (
	expiredPerTick = 2000
	// expiredLooksMax is how many parts it looks at. Some that are old are not to
	// be held, since they were released or are in doubt.
	expiredLooksMax = 20_000
)

// originBytesMax bounds each text of an origin, since origins are kept for good.
const originBytesMax = 255

// Texts for people are cut at these lengths.
const (
	detailBytesMax = 512
	reasonBytesMax = 256
	replyBytesMax  = 512 // the longest reply line of RFC 5321 section 4.5.3.1.5
)

// Units of log time.
const (
	second Millis = 1000
	minute        = 60 * second
	hour          = 60 * minute
)

// A State is the replicated queue.
//
// What grows in it, and what bounds that: messages that are queued or held, by
// the disks that hold their bodies (admission looks at those, not we); records
// of ended messages and aliases, by Settings.RecordLife; fingerprints, by
// Settings.FingerprintMax; leases, by the messages in them; domains, by
// domainsMax, those that reports go to by outboundMax; starts, by serversMax; recipients that are known good, by knownMax. Everything else is of fixed size.
//
// Invariant: every part of a message is in exactly one place: due, waiting,
// leased, or none of them where nothing of it is queued.
// Invariant: an index holds nothing that does not follow from the messages.
type State struct {
	applied    Index
	now        Millis
	settings   Settings // without zero fields
	domainLast domainNumber

	messages tree[stored]       // by entry
	ids      tree[idItem]       // the same, by id
	rests    tree[restItem]     // what few of them have, by entry
	sealed   blocks             // what never changes about them
	aliases  tree[aliasItem]    // which ids stand for a message
	aliasIDs tree[idItem]       // the same, by id
	domains  tree[*domain]      // by number
	names    tree[nameItem]     // which number a name has
	due      tree[partItem]     // parts that may be granted, oldest first within a domain
	waiting  tree[partItem]     // parts with a wait running
	wakes    tree[wakeItem]     // the same, by the end of the wait
	endings  tree[domainNumber] // domains whose retry waits are being ended: see domain.ending
	leases   tree[leaseItem]    // by token
	leased   tree[leasedItem]   // which messages are in a lease
	prints   tree[printItem]    // fingerprints of unsettled messages
	printed  tree[printItem]    // the same, by entry: oldest first
	ended    tree[endedItem]    // messages with nothing left to do, by the time they ended
	counts   tree[countsItem]   // by domain number
	origins  tree[originItem]   // shared by messages
	numbered tree[originItem]   // the same, by number
	starts   tree[startItem]    // by server
	known    tree[knownItem]    // recipients that a primary took mail for
	swept    knownItem          // where the walk over known goes on
	owing    tree[Index]        // messages that owe their senders reports
	outbound int                // domains that are outbound

	totals Totals
	// effects collects what Apply returns. Empty between two of them.
	effects []Effect
	// waived is empty but in tests.
	waived waivers
}

// waivers are rules of the protocol that a test may take away, to prove that
// it would notice. All are in force in every State that New or Decode made.
type waivers struct {
	matchAnyState    bool // a repeat matches a removed message too
	neverSettle      bool // settled ids are ignored
	settleAfterMatch bool // an Accept is matched before its settled ids count
	expireUnguarded  bool // ExpireLeases ends a lease that was renewed since
	grantUnchecked   bool // GrantLeases believes its proposer
	unfenced         bool // deferred and failed count under any token
	holdEndsLease    bool // Hold clears the lease record
}

type (
	// domainNumber stands for a relay domain in the indexes. A number is never
	// given out twice: a domain that was removed and put again is another one.
	domainNumber uint32

	idItem struct {
		id    mail.QueueID // of a message, or of an alias
		entry Index        // of the message, or of that which the alias stands for
	}
	aliasItem struct {
		entry Index
		id    mail.QueueID
	}
	nameItem struct {
		name   mail.Domain
		number domainNumber
	}
	partItem struct {
		domain domainNumber
		entry  Index
	}
	wakeItem struct {
		at   Millis
		part partItem
	}
	leasedItem struct {
		token Token
		entry Index
	}
	endedItem struct {
		at    Millis
		entry Index
	}
)

func (a idItem) less(b idItem) bool { return a.id.Compare(b.id) < 0 }

func (a partItem) less(b partItem) bool {
	if a.domain != b.domain {
		return a.domain < b.domain
	}
	return a.entry < b.entry
}

// New returns an empty State at log time zero.
func New() *State {
	return &State{
		settings: DefaultSettings(),
		messages: newTree(func(a, b stored) bool { return a.entry < b.entry }),
		ids:      newTree(idItem.less),
		rests:    newTree(func(a, b restItem) bool { return a.entry < b.entry }),
		sealed:   newBlocks(),
		aliasIDs: newTree(idItem.less),
		aliases: newTree(func(a, b aliasItem) bool {
			if a.entry != b.entry {
				return a.entry < b.entry
			}
			return a.id.Compare(b.id) < 0
		}),
		domains: newTree(func(a, b *domain) bool { return a.number < b.number }),
		names:   newTree(func(a, b nameItem) bool { return a.name < b.name }),
		due:     newTree(partItem.less),
		waiting: newTree(partItem.less),
		wakes: newTree(func(a, b wakeItem) bool {
			if a.at != b.at {
				return a.at < b.at
			}
			return a.part.less(b.part)
		}),
		endings: newTree(func(a, b domainNumber) bool { return a < b }),
		leases:  newTree(func(a, b leaseItem) bool { return a.token < b.token }),
		leased: newTree(func(a, b leasedItem) bool {
			if a.token != b.token {
				return a.token < b.token
			}
			return a.entry < b.entry
		}),
		prints:  newTree(printItem.less),
		printed: newTree(func(a, b printItem) bool { return a.entry < b.entry }),
		ended: newTree(func(a, b endedItem) bool {
			if a.at != b.at {
				return a.at < b.at
			}
			return a.entry < b.entry
		}),
		counts:   newTree(func(a, b countsItem) bool { return a.domain < b.domain }),
		origins:  newTree(func(a, b originItem) bool { return a.origin.compare(*b.origin) < 0 }),
		numbered: newTree(func(a, b originItem) bool { return a.number < b.number }),
		starts:   newTree(func(a, b startItem) bool { return a.server < b.server }),
		known:    newTree(knownItem.less),
		owing:    newTree(func(a, b Index) bool { return a < b }),
	}
}

// Apply changes s as the command of the entry at index i asks, and returns
// what its proposer learns and what the shell may do now. It is total: any
// command gets a Result. The index must be greater than that of the entry
// before; an entry applied twice would make this node differ from the others,
// so that is a broken shell, and panics.
func (s *State) Apply(i Index, c Command) (Result, []Effect) {
	if i <= s.applied {
		panic(fmt.Sprintf("apply entry %d after entry %d", i, s.applied))
	}
	s.applied = i
	if !s.waived.settleAfterMatch {
		s.settle(c.Settled)
	}
	r := s.act(i, c)
	s.endWaits()
	if s.waived.settleAfterMatch {
		s.settle(c.Settled)
	}
	effects := s.effects
	s.effects = nil
	return r, effects
}

func (s *State) act(i Index, c Command) Result {
	switch a := c.Action.(type) {
	case Accept:
		return s.accept(i, c.Node, a)
	case Settle:
		return Result{Verdict: Done}
	case GrantLeases:
		return s.grantLeases(i, a)
	case RenewLeases:
		return s.renewLeases(i, a)
	case ExpireLeases:
		return s.expireLeases(a)
	case RecordOutcomes:
		return s.recordOutcomes(i, a)
	case IssueReport:
		return s.issueReport(i, c.Node, a)
	case Hold:
		return s.hold(a)
	case Release:
		return s.release(a)
	case Remove:
		return s.remove(a)
	case PutDomain:
		return s.putDomain(a.Domain)
	case RemoveDomain:
		return s.removeDomain(a.Name)
	case FlushDomain:
		return s.flushDomain(i, a.Name)
	case ResumeDomain:
		return s.resumeDomain(a.Name)
	case RecordPolicy:
		return s.recordPolicy(a)
	case ReportNextHop:
		return s.reportNextHop(a)
	case PutSettings:
		return s.putSettings(a.Settings)
	case Tick:
		return s.tick(a.Elapsed)
	case RecordStart:
		return s.recordStart(i, a)
	}
	return invalid("no action")
}

func invalid(format string, args ...any) Result {
	return Result{Verdict: Invalid, Text: fmt.Sprintf(format, args...)}
}

func refused(format string, args ...any) Result {
	return Result{Verdict: Refused, Text: fmt.Sprintf(format, args...)}
}

func notFound(format string, args ...any) Result {
	return Result{Verdict: NotFound, Text: fmt.Sprintf(format, args...)}
}

// Snapshot returns a copy of s in constant time. Any number of goroutines may
// read the copy while s goes on; taking it counts as a change of s.
func (s *State) Snapshot() *State {
	t := *s
	t.messages = s.messages.copy()
	t.ids = s.ids.copy()
	t.rests = s.rests.copy()
	t.sealed = s.sealed.copy()
	t.aliases = s.aliases.copy()
	t.aliasIDs = s.aliasIDs.copy()
	t.domains = s.domains.copy()
	t.names = s.names.copy()
	t.due = s.due.copy()
	t.waiting = s.waiting.copy()
	t.wakes = s.wakes.copy()
	t.endings = s.endings.copy()
	t.leases = s.leases.copy()
	t.leased = s.leased.copy()
	t.prints = s.prints.copy()
	t.printed = s.printed.copy()
	t.ended = s.ended.copy()
	t.counts = s.counts.copy()
	t.origins = s.origins.copy()
	t.starts = s.starts.copy()
	t.known = s.known.copy()
	t.owing = s.owing.copy()
	t.numbered = s.numbered.copy()
	return &t
}

// Applied returns the index of the last entry applied.
func (s *State) Applied() Index { return s.applied }

// Now returns the log time.
func (s *State) Now() Millis { return s.now }

// Settings returns the settings in force, defaults filled in.
func (s *State) Settings() Settings { return s.settings }

// Message returns the message of the id, also where it has ended and is not yet
// forgotten. An alias finds the message that it stands for.
func (s *State) Message(id mail.QueueID) (Message, bool) {
	m, ok := s.find(id)
	if !ok {
		return Message{}, false
	}
	return s.view(m), true
}

// Messages returns all messages from the id on, in ascending order of ids.
func (s *State) Messages(from mail.QueueID) iter.Seq[Message] {
	return func(yield func(Message) bool) {
		for item := range s.ids.from(idItem{id: from}) {
			m, _ := s.message(item.entry)
			if !yield(s.view(m)) {
				return
			}
		}
	}
}

// LiveBodies returns the bodies that are still needed, of the messages that were
// accepted by the entry at from or later, in the order in which they were
// accepted, each with that entry.
func (s *State) LiveBodies(from Index) iter.Seq2[Index, mail.BodyRef] {
	return func(yield func(Index, mail.BodyRef) bool) {
		for m := range s.messagesFrom(from) {
			if m.live() && !yield(m.entry, s.bodyOf(&m)) {
				return
			}
		}
	}
}

// Due returns the messages that GrantLeases would grant for the domain now, in
// the order in which they were accepted.
func (s *State) Due(d mail.Domain) iter.Seq[mail.QueueID] {
	return func(yield func(mail.QueueID) bool) {
		n, ok := s.names.get(nameItem{name: d})
		if !ok {
			return
		}
		for item := range s.due.from(partItem{domain: n.number}) {
			if item.domain != n.number {
				return
			}
			m, _ := s.messages.get(stored{entry: item.entry})
			if !yield(m.id) {
				return
			}
		}
	}
}

// Live reports whether the body of the id is still needed. That of an alias
// never is: the body of the message that it stands for is delivered.
func (s *State) Live(id mail.QueueID) bool {
	item, ok := s.ids.get(idItem{id: id})
	if !ok {
		return false
	}
	st, _ := s.messages.get(stored{entry: item.entry})
	m := s.restore(st) // not on the heap: who walks over all bodies asks this
	return m.live()
}

// Known reports whether the id is that of a message or an alias, in any state.
func (s *State) Known(id mail.QueueID) bool {
	return s.ids.has(idItem{id: id}) || s.aliasIDs.has(idItem{id: id})
}

// find returns the message of an id or of the message that an alias stands for.
func (s *State) find(id mail.QueueID) (*message, bool) {
	if m, ok := s.findOwn(id); ok {
		return m, true
	}
	item, ok := s.aliasIDs.get(idItem{id: id})
	if !ok {
		return nil, false
	}
	return s.message(item.entry)
}

// findOwn is find without aliases: leases and reports name messages.
func (s *State) findOwn(id mail.QueueID) (*message, bool) {
	item, ok := s.ids.get(idItem{id: id})
	if !ok {
		return nil, false
	}
	return s.message(item.entry)
}
