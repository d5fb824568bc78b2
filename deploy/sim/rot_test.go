package sim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/node"
	"github.com/holdfast-mx/holdfast/deploy/datadir"
)

var flips = flag.Int("flips", 1, "how many bits to flip of each class of bytes, each in a cluster of its own")

// A span is a stretch of a file.
type span struct{ from, to int }

// An ending is how the node ended before the bit flipped.
type ending int

const (
	stopped ending = iota
	killed
)

// An outcome is what may become of the node.
type outcome int

const (
	runs    outcome = iota // it goes on as before, or fetches what it lost
	refuses                // it ends with exit code 74, and says that it needs a new incarnation
	either
)

// A rotClass is a class of bytes of a kind of file.
type rotClass struct {
	name  string
	spans func(b []byte) []span // where it is in a file
	// longer is how many zeros lie behind the file, as in one that was made ready.
	longer int
	last   bool // in the last file of that kind, otherwise in the first
	end    ending
	want   outcome
}

// rotKinds is every kind of file with its classes. A kind that has no classes
// says why.
var rotKinds = map[datadir.Kind]struct {
	classes []rotClass
	why     string
}{
	datadir.BodySegment: {classes: slices.Concat(sealedClasses(runs, "body"), openClasses(runs, runs, "body"), []rotClass{
		{name: "sealed: deletions", spans: payloads(2), want: runs},
	})},
	datadir.LogSegment:    {classes: slices.Concat(sealedClasses(refuses, "entry"), openClasses(refuses, refuses, "entry"))},
	datadir.BodyPool:      {classes: []rotClass{{name: "content", spans: everything, want: runs}}},
	datadir.LogPool:       {classes: []rotClass{{name: "content", spans: everything, want: runs}}},
	datadir.LogName:       {classes: []rotClass{{name: "content", spans: everything, want: refuses}}},
	datadir.StableStore:   {classes: stableClasses()},
	datadir.SnapshotMeta:  {classes: metaClasses()},
	datadir.SnapshotState: {classes: stateClasses()},
	datadir.Lock:          {why: "empty"},
	datadir.StableDraft:   {why: "thrown away unread"},
	datadir.SnapshotDraft: {why: "thrown away unread"},
	datadir.BodyFormat1:   {why: "only while a directory of version 0.1 is taken over: each body is read and compared with its digest"},
	datadir.PeersFile:     {why: "a hint, tested in cluster/gossip"},
	datadir.PeersDraft:    {why: "thrown away unread"},
}

func everything(b []byte) []span { return []span{{0, len(b)}} }

// fixed is a class at a fixed place.
func fixed(from, to int) func([]byte) []span {
	return func([]byte) []span { return []span{{from, to}} }
}

// sealedClasses are those of a sealed segment. want is for what of a record only
// the record has.
func sealedClasses(want outcome, payload string) []rotClass {
	return []rotClass{
		{name: "sealed: header, first page", spans: fixed(0, 64), want: want},
		{name: "sealed: header, second page", spans: fixed(4096, 4096+64), want: want},
		{name: "sealed: seal, first page", spans: fixed(512, 576), want: want},
		{name: "sealed: seal, second page", spans: fixed(4096+512, 4096+576), want: want},
		{name: "sealed: zeros of the head", spans: fixed(576, 4096), want: runs},
		{name: "sealed: record header", spans: inRecords(1, 0, 32), want: want},
		{name: "sealed: record checksum", spans: inRecords(1, 16, 20), want: want},
		{name: "sealed: label", spans: labels(1), want: want},
		{name: "sealed: " + payload, spans: laterHalf(payloads(1)), want: want},
		{name: "sealed: padding", spans: paddings, want: runs},
		{name: "sealed: index header", spans: inRecords(kindIndexOnDisk, 0, 32), want: want},
		{name: "sealed: index", spans: payloads(kindIndexOnDisk), want: want},
	}
}

// openClasses are those of a segment that was being written when the node was
// killed. last is for its last record.
func openClasses(want, last outcome, payload string) []rotClass {
	return []rotClass{
		{name: "open: header, first page", spans: fixed(0, 64), last: true, end: killed, want: want},
		{name: "open: header, second page", spans: fixed(4096, 4096+64), last: true, end: killed, want: want},
		{name: "open: record header", spans: butLast(inRecords(1, 0, 32)), last: true, end: killed, want: want},
		{name: "open: label", spans: butLast(labels(1)), last: true, end: killed, want: want},
		{name: "open: " + payload, spans: butLast(payloads(1)), last: true, end: killed, want: want},
		{name: "open: header of the last record", spans: onlyLast(inRecords(1, 0, 32)), last: true, end: killed, want: last},
		{name: "open: last " + payload, spans: onlyLast(payloads(1)), last: true, end: killed, want: last},
		{name: "open: zeros behind the end", spans: tail, longer: 1 << 20, last: true, end: killed, want: runs},
		{name: "last, sealed by the stop: index", spans: payloads(kindIndexOnDisk), last: true, end: stopped, want: want},
	}
}

// The parts of a segment, as cluster/segment/DESIGN.md draws them. They are read
// here once more, so that the test does not believe what it tests.
const (
	segmentHead     = 8192
	kindIndexOnDisk = 0xff01
)

type recordOnDisk struct{ kind, offset, label, payload, length, end int }

func recordsOf(b []byte) []recordOnDisk {
	var all []recordOnDisk
	mark := b[16:24]
	for off := segmentHead; off+32 <= len(b) && bytes.Equal(b[off:off+8], mark); {
		r := recordOnDisk{kind: int(binary.BigEndian.Uint16(b[off+8:])), offset: off, label: int(binary.BigEndian.Uint16(b[off+10:])), length: int(binary.BigEndian.Uint32(b[off+12:]))}
		r.payload = off + 32 + r.label
		r.end = (r.payload + r.length + 7) / 8 * 8
		all = append(all, r)
		off = r.end
	}
	return all
}

func ofRecords(part func(recordOnDisk) span) func([]byte) []span {
	return func(b []byte) []span {
		var all []span
		for _, r := range recordsOf(b) {
			if s := part(r); s.to > s.from {
				all = append(all, s)
			}
		}
		return all
	}
}

func inRecords(kind, from, to int) func([]byte) []span {
	return ofRecords(func(r recordOnDisk) span {
		if r.kind != kind {
			return span{}
		}
		return span{r.offset + from, r.offset + to}
	})
}

func labels(kind int) func([]byte) []span {
	return ofRecords(func(r recordOnDisk) span {
		if r.kind != kind {
			return span{}
		}
		return span{r.offset + 32, r.payload}
	})
}

func payloads(kind int) func([]byte) []span {
	return ofRecords(func(r recordOnDisk) span {
		if r.kind != kind {
			return span{}
		}
		return span{r.payload, r.payload + r.length}
	})
}

var paddings = ofRecords(func(r recordOnDisk) span { return span{r.payload + r.length, r.end} })

func tail(b []byte) []span {
	all := recordsOf(b)
	return []span{{all[len(all)-1].end, len(b)}}
}

func butLast(spans func([]byte) []span) func([]byte) []span {
	return func(b []byte) []span { all := spans(b); return all[:max(0, len(all)-1)] }
}

// laterHalf: the first bodies in a segment are those of mail that is gone.
func laterHalf(spans func([]byte) []span) func([]byte) []span {
	return func(b []byte) []span { all := spans(b); return all[len(all)/2:] }
}

func onlyLast(spans func([]byte) []span) func([]byte) []span {
	return func(b []byte) []span { all := spans(b); return all[max(0, len(all)-1):] }
}

// stableClasses are those of raft.db, whose pages are of 4096 octets: two meta
// pages, an empty list of free pages, and leaves, of which one has the record.
func stableClasses() []rotClass {
	const page = 4096
	record := func(b []byte) span {
		// The one that counts: the record of the greatest revision.
		at, newest := -1, uint64(0)
		for i := 0; ; {
			j := bytes.Index(b[i:], []byte("hfstable"))
			if j < 0 {
				break
			}
			i += j
			if revision := binary.BigEndian.Uint64(b[i+16:]); at < 0 || revision > newest {
				at, newest = i, revision
			}
			i += 8
		}
		end := at + 24
		for range binary.BigEndian.Uint32(b[at+12:]) {
			end += 3 + int(b[end]) + int(binary.BigEndian.Uint16(b[end+1:]))
		}
		return span{at, end}
	}
	near := func(key string, skip, length int) func([]byte) []span {
		return func(b []byte) []span {
			r := record(b)
			at := r.from + bytes.Index(b[r.from:r.to], []byte(key)) + len(key)
			return []span{{at + skip, at + skip + length}}
		}
	}
	free := func(b []byte) []span {
		var all []span
		used := record(b).from / page
		for p := 4; p < len(b)/page; p++ {
			if kind := binary.NativeEndian.Uint16(b[p*page+8:]); p != used && kind == 0 {
				all = append(all, span{p * page, (p + 1) * page})
			}
		}
		return all
	}
	return []rotClass{
		{name: "meta page 0", spans: fixed(16, 16+64), want: refuses},
		{name: "meta page 1", spans: fixed(page+16, page+16+64), want: refuses},
		{name: "list of free pages", spans: fixed(2*page, 2*page+16), want: either},
		{name: "head of the leaf", spans: func(b []byte) []span { at := record(b).from / page * page; return []span{{at, at + 12}} }, want: refuses},
		{name: "record head", spans: func(b []byte) []span { r := record(b); return []span{{r.from, r.from + 24}} }, want: refuses},
		{name: "term", spans: near("CurrentTerm", 0, 8), want: refuses},
		{name: "vote's term", spans: near("LastVoteTerm", 0, 8), want: refuses},
		{name: "whom the vote was for", spans: near("LastVoteCand", 0, 4), want: refuses},
		{name: "floor", spans: near("HoldfastFloor", 0, 8), want: refuses},
		{name: "count of starts", spans: near("HoldfastStart", 0, 8), want: refuses},
		{name: "our checksum", spans: func(b []byte) []span { r := record(b); return []span{{r.to, r.to + 4}} }, want: refuses},
		{name: "free page", spans: free, want: runs},
		{name: "meta page 0, after a kill", spans: fixed(16, 16+64), end: killed, want: refuses},
		{name: "term, after a kill", spans: near("CurrentTerm", 0, 8), end: killed, want: refuses},
	}
}

// metaClasses: the older snapshot serves if need be, since the log leads on.
func metaClasses() []rotClass {
	value := func(key string) func([]byte) []span {
		return func(b []byte) []span {
			at := bytes.Index(b, []byte(key)) + len(key)
			return []span{{at, at + 1}}
		}
	}
	return []rotClass{
		{name: "index", spans: value(`"Index":`), last: true, want: either},
		{name: "term", spans: value(`"Term":`), last: true, want: either},
		{name: "configuration", spans: value(`"Address":"`), last: true, want: either},
		{name: "checksum", spans: value(`"CRC":"`), last: true, want: either},
		{name: "anywhere", spans: everything, last: true, want: either},
	}
}

func stateClasses() []rotClass {
	return []rotClass{
		{name: "header", spans: fixed(0, 16), last: true, want: either},
		{name: "data", spans: func(b []byte) []span { return []span{{16, len(b) - 52}} }, last: true, want: either},
		{name: "seal", spans: func(b []byte) []span { return []span{{len(b) - 52, len(b)}} }, last: true, want: either},
	}
}

// TestFlippedBitOnOneNode: one bit of one file of one node of three flips while
// the node does not run. It starts as before, fetching what it lost, or it does
// not start, says what to do, and comes back empty, under a new incarnation.
// Whichever, everything that got a 250 is delivered, nothing is altered, and all
// copies of the queue are the same.
func TestFlippedBitOnOneNode(t *testing.T) {
	for _, kind := range datadir.Kinds() {
		for i, c := range rotKinds[kind].classes {
			for n := range *flips {
				t.Run(fmt.Sprintf("%s/%s/%d", kind, c.name, n), func(t *testing.T) {
					t.Parallel()
					seed := uint64(n*1000+i) + uint64(len(kind))<<32
					tell(t, seed, func(t *testing.T, s *story) { rot(t, s, kind, c, seed) })
				})
			}
		}
	}
}

// TestEveryKindOfFileIsInTheTable: none is forgotten when a new one comes.
func TestEveryKindOfFileIsInTheTable(t *testing.T) {
	for _, k := range datadir.Kinds() {
		if one, ok := rotKinds[k]; !ok || (len(one.classes) == 0) == (one.why == "") {
			t.Errorf("%s: neither classes nor a reason, or both", k)
		}
	}
}

const rotting = "n2"

func rot(t *testing.T, s *story, kind datadir.Kind, c rotClass, seed uint64) {
	s.inFiles = rotting
	// Too little for files of zeros, enough for files that were used before.
	s.disks[rotting].free.Store(15)
	s.begin()
	s.history()
	dir := s.config(rotting).DataDir
	files := s.filesOf(dir)
	if c.end == killed {
		s.killInFiles(rotting)
	} else if err := s.Stop(rotting); err != nil {
		t.Fatal(err)
	}
	where := flip(t, files[kind], c, rand.New(rand.NewPCG(seed, 1)))
	s.letters(3)

	// Others see it come back.
	err := s.Start(s.ctx, rotting)
	if err == nil {
		time.Sleep(time.Minute)
		err = s.node(rotting).node.Err()
		if err != nil {
			err = s.fallen(rotting)
			s.setNode(rotting, nil)
			s.network.Kill(rotting)
		}
	}
	t.Logf("%s: %v", where, err)
	switch {
	case err == nil && c.want == refuses:
		t.Errorf("it runs")
	case err != nil && c.want == runs:
		t.Errorf("it does not run: %v", err)
	case err != nil && !errors.Is(err, node.ErrDisk):
		t.Errorf("not known for a failure of the disk: %v", err)
	case err != nil && !strings.Contains(err.Error(), "new incarnation"):
		t.Errorf("does not say what to do: %v", err)
	}
	up := nodeNames
	if err != nil {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		s.start(rotting)
		up = othersThan(rotting)
	} else {
		// Now its log and its vote count.
		s.awaitReady(up...)
		leader, _ := s.leader()
		if leader == rotting {
			s.cutOff(leader)
			time.Sleep(time.Minute)
			s.network.HealAll()
			leader, _ = s.leader()
		}
		s.cutOff(leader)
		time.Sleep(time.Minute)
		s.letters(2)
		s.network.HealAll()
	}
	s.awaitReady(up...)
	s.letters(3)
	if kind == datadir.BodySegment {
		// Who has the damaged body is the one to deliver it.
		for _, other := range othersThan(rotting) {
			s.network.Cut(other, primaryName)
		}
	}
	s.primaryUp()
	s.await(3*time.Hour, "everything has arrived", func() bool { missing, _ := s.ledger.Missing(); return missing == 0 })
	s.await(3*time.Hour, "the queue is empty", func() bool {
		for _, name := range up {
			if s.member(name).Totals().Live > 0 {
				return false
			}
		}
		return true
	})
	if report := s.ledger.Check(); !report.OK() || report.Accepted == 0 {
		t.Errorf("the ledger does not balance: %+v", report)
	}
	s.sameQueue(up)
	s.filesOf(dir)
}

// history makes a data directory in which there is everything: sealed segments
// and one that is being written, in a file that was made ready or used before;
// deletions; snapshots; mail that waits.
func (s *story) history() {
	s.t.Helper()
	again := func() {
		// A file of the log is made ready meanwhile, and what was delivered is
		// deleted.
		time.Sleep(time.Minute)
		if err := s.Stop(rotting); err != nil {
			s.t.Fatal(err)
		}
		s.start(rotting)
		s.awaitReady(nodeNames...)
	}
	snapshot := func() {
		if err := s.node(rotting).node.Member().Node().Snapshot(s.ctx); err != nil {
			s.t.Fatal(err)
		}
	}
	s.primaryUp()
	s.letters(4)
	s.await(time.Hour, "the first mail is gone", s.empty)
	again()
	s.letters(2)
	s.await(time.Hour, "so is the next", s.empty)
	s.PrimaryDown()
	snapshot()
	s.letters(10)
	again()
	s.letters(2)
	snapshot()
	s.letters(1)
	time.Sleep(10 * time.Second)
}

// letters sends some letters, other ones each time, and waits for their 250s.
func (s *story) letters(count int) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.ctx, time.Hour)
	defer cancel()
	s.seed++
	if _, err := s.Send(ctx, count, 2, time.Second); err != nil {
		s.t.Fatal(err)
	}
}

// filesOf returns the files of a data directory by their kind, in the order of
// their names, and fails the test over one that is of no known kind.
func (s *story) filesOf(dir string) map[datadir.Kind][]string {
	s.t.Helper()
	all := make(map[datadir.Kind][]string)
	err := filepath.WalkDir(dir, func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		within, err := filepath.Rel(dir, name)
		if err != nil {
			return err
		}
		kind, ok := datadir.KindOf(filepath.ToSlash(within))
		if !ok {
			s.t.Errorf("a node keeps a file that is in no table: %s", within)
		}
		if kind == datadir.Lock {
			if info, err := e.Info(); err != nil || info.Size() > 0 {
				s.t.Errorf("%s has %d octets: %v", within, info.Size(), err)
			}
		}
		all[kind] = append(all[kind], name)
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return all
}

// flip flips one bit, and says where.
func flip(t *testing.T, files []string, c rotClass, random *rand.Rand) string {
	t.Helper()
	if len(files) == 0 {
		t.Fatal("no such file")
	}
	name := files[0]
	if c.last {
		name = files[len(files)-1]
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	b = append(b, make([]byte, c.longer)...)
	spans := c.spans(b)
	if len(spans) == 0 || spans[0].from >= spans[0].to {
		t.Fatalf("%s has no %s", name, c.name)
	}
	one := spans[random.IntN(len(spans))]
	at, bit := one.from+random.IntN(one.to-one.from), random.IntN(8)
	b[at] ^= 1 << bit
	if _, err := f.WriteAt(b[at:], int64(at)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s, byte %d of %d, bit %d", filepath.Base(name), at, len(b), bit)
}

// killInFiles ends the node that keeps files as SIGKILL does, as far as the
// files can tell: they are then as they are now, at a moment when nothing is
// written.
func (s *story) killInFiles(name string) {
	s.t.Helper()
	// What it acknowledged last has been seen, also by who did not lead.
	id := consensus.ServerID(s.serverID(name))
	s.await(time.Minute, "the others know how far "+name+" is", func() bool {
		seen := uint64(0)
		for _, other := range othersThan(name) {
			seen = max(seen, s.node(other).node.Member().Node().Witnessed(id).Index)
		}
		return seen >= s.node(name).node.Member().Node().LastIndex()
	})
	dir := s.config(name).DataDir
	kept := dir + ".killed"
	synctest.Wait()
	copyTree(s.t, dir, kept)
	s.node(name).dead.Store(true)
	s.network.Kill(name)
	if err := s.Stop(name); err != nil {
		s.t.Logf("stop %s behind its files: %v", name, err)
	}
	if err := errors.Join(os.RemoveAll(dir), os.Rename(kept, dir)); err != nil {
		s.t.Fatal(err)
	}
}

// copyTree copies a directory. Zeros become holes, which read the same.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		within, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		if e.IsDir() {
			return os.MkdirAll(filepath.Join(to, within), 0o700)
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := os.OpenFile(filepath.Join(to, within), os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		const block = 4096
		err = f.Truncate(int64(len(b)))
		for at := 0; at < len(b) && err == nil; at += block {
			if piece := b[at:min(at+block, len(b))]; !bytes.Equal(piece, make([]byte, len(piece))) {
				_, err = f.WriteAt(piece, int64(at))
			}
		}
		return errors.Join(err, f.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
}

// sameQueue waits until some nodes have applied the same entries, and compares
// their queues.
func (s *story) sameQueue(names []string) {
	s.t.Helper()
	var digests [][sha256.Size]byte
	s.await(time.Hour, "all have applied the same", func() bool {
		digests = nil
		at := s.member(names[0]).Applied()
		for _, name := range names {
			view := s.member(name)
			if view.Applied() != at {
				return false
			}
			hash := sha256.New()
			if err := view.Encode(hash); err != nil {
				s.t.Fatal(err)
			}
			digests = append(digests, [sha256.Size]byte(hash.Sum(nil)))
		}
		return true
	})
	for i, d := range digests {
		if d != digests[0] {
			s.t.Errorf("the queues of %s and %s differ", names[0], names[i])
		}
	}
}
