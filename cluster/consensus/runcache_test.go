package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/raftlog"
	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// TestReadersOfALongLog: whoever goes through the log reads what is in it, several
// at a time, over the ends of files, and after entries were cut off and replaced
// by others.
func TestReadersOfALongLog(t *testing.T) {
	dir := t.TempDir()
	open := func() *segmentLog {
		s, err := openSegmentLog(vfs.OS(), dir, raftlog.Options{SegmentBytes: 300 << 10})
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	entries := func(from, to, term uint64) (logs []*raft.Log) {
		for index := from; index <= to; index++ {
			l := &raft.Log{Index: index, Term: term, Type: raft.LogCommand, Data: []byte(fmt.Sprintf("entry %d of term %d ", index, term))}
			if index%1000 == 0 { // longer than a run
				l.Data = bytes.Repeat(l.Data, 1+2*runBytes/len(l.Data))
			} else {
				l.Data = bytes.Repeat(l.Data, int(1+index%20))
			}
			logs = append(logs, l)
		}
		return logs
	}
	const last = 5000
	s := open()
	want := entries(1, last, 1)
	if err := s.StoreLogs(want); err != nil {
		t.Fatal(err)
	}
	reopen := func() { // without the newest entries in memory
		t.Helper()
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open()
	}
	check := func(first uint64) {
		t.Helper()
		read := func(index uint64) {
			t.Helper()
			var got raft.Log
			err := s.GetLog(index, &got)
			if index < first || index > last {
				if !errors.Is(err, raft.ErrLogNotFound) {
					t.Fatalf("entry %d: %v, %+v", index, err, got)
				}
				return
			}
			if w := want[index-1]; err != nil || got.Index != index || got.Term != w.Term || !bytes.Equal(got.Data, w.Data) {
				t.Fatalf("entry %d: of term %d, %d octets, %v", index, got.Term, len(got.Data), err)
			}
		}
		for index := first; index <= last+3; index++ {
			read(index)
			if index >= first+1500 { // another reader, further back, that looks at what lies before
				read(index - 1500)
				read(index - 1501)
			}
		}
		ahead := 0
		for _, r := range s.runs.runs {
			ahead += len(r.entries)
		}
		if ahead == 0 {
			t.Error("nothing was read ahead")
		}
	}
	reopen()
	check(1)
	const cut = 3100
	if err := s.DeleteRange(cut, last); err != nil {
		t.Fatal(err)
	}
	want = append(want[:cut-1], entries(cut, last, 2)...)
	if err := s.StoreLogs(want[cut-1:]); err != nil {
		t.Fatal(err)
	}
	s.cache.drop(1, last) // what is not in memory any more
	check(1)
	reopen()
	check(1)
	if err := s.DeleteRange(1, 2000); err != nil {
		t.Fatal(err)
	}
	check(2001)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkReadLog reads a log entry by entry, as a start does.
func BenchmarkReadLog(b *testing.B) {
	dir := b.TempDir()
	s, err := openSegmentLog(vfs.OS(), dir, raftlog.Options{})
	if err != nil {
		b.Fatal(err)
	}
	const last = 50_000
	for from := uint64(1); from <= last; from += 1000 {
		var logs []*raft.Log
		for index := from; index < from+1000; index++ {
			logs = append(logs, &raft.Log{Index: index, Term: 1, Data: make([]byte, 350), Extensions: make([]byte, 60)})
		}
		if err := s.StoreLogs(logs); err != nil {
			b.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	if s, err = openSegmentLog(vfs.OS(), dir, raftlog.Options{}); err != nil {
		b.Fatal(err)
	}
	defer s.Close()
	b.ReportAllocs()
	index := uint64(0)
	for b.Loop() {
		var l raft.Log
		if index = index%last + 1; s.GetLog(index, &l) != nil {
			b.Fatal(index)
		}
	}
}
