package fsm

import (
	"cmp"
	"iter"
	"slices"
	"strings"
)

// ServerID names one member in one life of its data directory:
// "<name>/<incarnation>".
type ServerID string

// serversMax bounds the servers whose starts are remembered. A cluster has up
// to nine at a time, and few that were.
const serversMax = 256

// serverIDBytesMax bounds a ServerID.
const serverIDBytesMax = 2 * nodeNameBytesMax

// A startItem is the newest start of a server that the cluster knows of.
type startItem struct {
	server ServerID
	number uint64
	entry  Index // that recorded it
}

// recordStart remembers the greatest number only, so that a data directory that
// is older than another of the same server is known by its number for ever.
func (s *State) recordStart(i Index, a RecordStart) Result {
	name, incarnation, ok := strings.Cut(string(a.Server), "/")
	if !ok || name == "" || incarnation == "" || len(a.Server) > serverIDBytesMax || clean(string(a.Server)) != string(a.Server) || a.Number == 0 {
		return invalid("start %d of server %q", a.Number, a.Server)
	}
	known, _ := s.starts.get(startItem{server: a.Server})
	if a.Number < known.number {
		return refused("%s has started %d times already", a.Server, known.number)
	}
	if a.Number == known.number {
		return Result{Verdict: Done}
	}
	if known.number == 0 && s.starts.len() >= serversMax {
		s.starts.remove(s.oldestStart())
	}
	s.starts.set(startItem{a.Server, a.Number, i})
	return Result{Verdict: Done}
}

func (s *State) oldestStart() startItem {
	return slices.MinFunc(slices.Collect(s.starts.all()), func(a, b startItem) int { return cmp.Compare(a.entry, b.entry) })
}

// Start returns the number of the newest start of a server that the cluster
// knows of, 0 for none. A server that says a smaller number of itself has an old
// copy of its data directory.
func (s *State) Start(id ServerID) uint64 {
	item, _ := s.starts.get(startItem{server: id})
	return item.number
}

// Starts returns every server of which a start is known, in order of ids, with
// its newest start.
func (s *State) Starts() iter.Seq2[ServerID, uint64] {
	return func(yield func(ServerID, uint64) bool) {
		for item := range s.starts.all() {
			if !yield(item.server, item.number) {
				return
			}
		}
	}
}
