package letter

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"math/rand/v2"
	"time"

	"crypto/sha256"

	"github.com/holdfast-mx/holdfast/cmd/holdfast-bench/ledger"
)

// Sizes says how big the letters of a run are.
type Sizes string

const (
	// Size4K and Size64K make plain letters of one size.
	Size4K  Sizes = "4k"
	Size64K Sizes = "64k"
	// Mix: 50 % of 4 to 16 KiB, 35 % to 100 KiB, 13 % to 1 MiB, 2 % to 10 MiB.
	Mix Sizes = "mix"
	// ShapesOfMail: every Shape in turn, and once per run one of 20 MiB.
	ShapesOfMail Sizes = "shapes"
)

// AllSizes lists the values of Sizes.
func AllSizes() []Sizes { return []Sizes{Size4K, Size64K, Mix, ShapesOfMail} }

// bigSize is the size of the one big letter among the shapes.
const bigSize = 20 << 20

// Options describe the letters of a run.
type Options struct {
	Seed uint64
	// Run stands in each marker, to tell runs apart that share a ledger. It
	// must be lower-case letters and digits, or "" for the seed.
	Run string
	// Domains are the relay domains that letters go to, in turn.
	Domains []string
	Sizes   Sizes
	// BigAt is the number of the letter of 20 MiB among the shapes.
	BigAt int
	// RefusedEvery, unless 0, makes each so many'th letter one that a primary refuses
	// for good, for some of its recipients or all: see Refusal.
	RefusedEvery int
}

// A Generator makes letters. It is safe for concurrent use.
type Generator struct {
	o    Options
	pool []byte
}

// The pool is lines of 76 characters of base64 and CRLF, as attachments have.
const (
	poolLine  = 78
	poolLines = 13_000 // about 1 MB
)

// New returns a generator, after it has made the pool.
func New(o Options) *Generator {
	if o.Run == "" {
		o.Run = "s" + fmt.Sprint(o.Seed)
	}
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	r := rand.New(rand.NewPCG(o.Seed, 0x706f6f6c))
	pool := make([]byte, 0, poolLine*poolLines)
	for range poolLines {
		for n := 0; n < 76; n += 4 {
			v := r.Uint32()
			pool = append(pool, alphabet[v&63], alphabet[v>>8&63], alphabet[v>>16&63], alphabet[v>>24&63])
		}
		pool = append(pool, '\r', '\n')
	}
	return &Generator{o: o, pool: pool}
}

// epoch is the Date of letter 0. Letters carry no time of the run, since they
// are to be the same in each.
var epoch = time.Date(2026, time.January, 5, 9, 0, 0, 0, time.UTC)

// Letter makes letter i.
func (g *Generator) Letter(i int) *Letter {
	b := builder{
		g: g, i: i, rand: rand.New(rand.NewPCG(g.o.Seed, uint64(i))), hash: sha256.New(),
		letter: &Letter{ID: ledger.MessageID(fmt.Sprintf("%s-%d", g.o.Run, i)), Shape: Plain},
	}
	b.letter.ReversePath = fmt.Sprintf("sender+%s@sender.test", b.letter.ID)
	b.to("user")
	refused := g.o.RefusedEvery > 0 && i%g.o.RefusedEvery == g.o.RefusedEvery-1
	switch sizes := g.o.Sizes; {
	case refused:
		b.refused(Refusals()[i/g.o.RefusedEvery%len(Refusals())])
	case sizes == Size4K:
		b.plain(4 << 10)
	case sizes == Size64K:
		b.plain(64 << 10)
	case sizes == Mix:
		b.plain(b.mixed())
	default:
		b.shaped()
	}
	b.letter.octets.SHA256 = ledger.Digest(hex.EncodeToString(b.hash.Sum(nil)))
	return b.letter
}

// A builder is one letter in the making.
type builder struct {
	g      *Generator
	i      int
	rand   *rand.Rand
	hash   hash.Hash
	letter *Letter
}

func (b *builder) domain(n int) string { return b.g.o.Domains[n%len(b.g.o.Domains)] }

// to sets the recipients: one for each name, all in the letter's domain.
func (b *builder) to(names ...string) {
	b.letter.Recipients = b.letter.Recipients[:0]
	for _, name := range names {
		b.letter.Recipients = append(b.letter.Recipients, ledger.Recipient(name, b.letter.ID, b.domain(b.i)))
	}
}

func (b *builder) add(p part) {
	b.letter.parts = append(b.letter.parts, p)
	b.letter.octets.Size += int64(len(p.octets))
	b.hash.Write(p.octets)
}

func (b *builder) text(s string) { b.add(part{octets: []byte(s)}) }

// fill adds about n octets of the pool, whole lines.
func (b *builder) fill(n int) {
	for lines := n / poolLine; lines > 0; {
		from := b.rand.IntN(poolLines)
		take := min(lines, poolLines-from)
		b.add(part{octets: b.g.pool[from*poolLine : (from+take)*poolLine], plain: true})
		lines -= take
	}
}

// header is the fields that every letter with a header has, without the empty
// line.
func (b *builder) header(subject string) string {
	var random [8]byte
	binary.BigEndian.PutUint64(random[:], b.rand.Uint64())
	return fmt.Sprintf("From: Sender <sender@sender.test>\r\nTo: <%s>\r\nSubject: %s\r\nDate: %s\r\nMessage-ID: <%x.%s@sender.test>\r\n%s: %s\r\n",
		b.letter.Recipients[0], subject, epoch.Add(time.Duration(b.i)*time.Minute).Format(time.RFC1123Z),
		random, b.letter.ID, ledger.Header, b.letter.ID)
}

func (b *builder) plain(size int) {
	b.text(b.header("letter "+fmt.Sprint(b.i)) + "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=us-ascii\r\n\r\n")
	b.fill(size - int(b.letter.octets.Size))
}

func (b *builder) mixed() int {
	between := func(low, high int) int { return low + b.rand.IntN(high-low) }
	switch n := b.rand.IntN(100); {
	case n < 50:
		return between(4<<10, 16<<10)
	case n < 85:
		return between(16<<10, 100<<10)
	case n < 98:
		return between(100<<10, 1<<20)
	default:
		return between(1<<20, 10<<20)
	}
}
