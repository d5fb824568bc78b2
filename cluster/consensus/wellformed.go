package consensus

import (
	"errors"
	"fmt"

	"github.com/hashicorp/raft"
)

// errMalformed is why a request is refused that no member sends. Raft would
// believe it: some of these end the process, and some leave on the disk what
// ends it at each start.
var errMalformed = errors.New("malformed request")

// What a request may say. Whatever a member of this or the next version sends
// is well below.
const (
	// entriesReceivedMax is the most entries in one request. It is more than
	// we send, so that a version that sends more can be rolled out.
	entriesReceivedMax = 4 * appendEntriesMax
	// senderBytesMax is the longest id or address of a sender: a member's name,
	// a slash and an incarnation are far shorter.
	senderBytesMax = 1024
	// indexMax is the greatest index of an entry, so that the arithmetic on
	// indexes cannot overflow. Nobody ever gets there honestly.
	indexMax = 1 << 62
	// snapshotBytesMax is the greatest size of a snapshot.
	snapshotBytesMax = 16 << 30
)

// wellFormed reports why a request is one that no member sends, nil when it is
// in order. It judges what a request is made of, never whether it is true: a
// member that lies in good form is believed.
func wellFormed(request any) error {
	var err error
	switch r := request.(type) {
	case *raft.AppendEntriesRequest:
		if err = checkSender(r.RPCHeader); err == nil {
			err = checkEntries(r)
		}
	case *raft.InstallSnapshotRequest:
		if err = checkSender(r.RPCHeader); err == nil {
			err = checkSnapshot(r)
		}
	case raft.WithRPCHeader: // votes, and to stand at once
		err = checkSender(r.GetRPCHeader())
	default:
		err = fmt.Errorf("a %T", request)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errMalformed, err)
	}
	return nil
}

// checkSender: Raft asks nobody without an id whether it may vote
// (raft.go:1663), and cannot tell an empty address that it voted for from no
// vote (raft.go:1721).
func checkSender(h raft.RPCHeader) error {
	for _, part := range [][]byte{h.ID, h.Addr} {
		if len(part) == 0 || len(part) > senderBytesMax {
			return fmt.Errorf("sender's id of %d octets and address of %d", len(h.ID), len(h.Addr))
		}
	}
	return nil
}

// checkEntries: Raft dereferences each entry, stores what has gaps and panics
// when it commits or starts over one (raft.go:1333, api.go:617), and judges
// types and configurations only when they are on the disk already
// (raft.go:1386, configuration.go:365).
func checkEntries(r *raft.AppendEntriesRequest) error {
	if r.PrevLogEntry > indexMax || r.LeaderCommitIndex > indexMax {
		return fmt.Errorf("predecessor %d, commit index %d", r.PrevLogEntry, r.LeaderCommitIndex)
	}
	if len(r.Entries) > entriesReceivedMax {
		return fmt.Errorf("%d entries", len(r.Entries))
	}
	for i, entry := range r.Entries {
		want := r.PrevLogEntry + 1 + uint64(i)
		switch {
		case entry == nil:
			return fmt.Errorf("entry %d: nil", want)
		case entry.Index != want:
			return fmt.Errorf("entry %d: has index %d", want, entry.Index)
		case entry.Term > r.Term:
			return fmt.Errorf("entry %d: of term %d in a request of term %d", want, entry.Term, r.Term)
		case len(entry.Data)+len(entry.Extensions) > appendBytesMax:
			return fmt.Errorf("entry %d: %d octets", want, len(entry.Data)+len(entry.Extensions))
		}
		switch entry.Type {
		case raft.LogCommand, raft.LogNoop, raft.LogBarrier:
		case raft.LogConfiguration:
			if err := checkConfiguration(entry.Data); err != nil {
				return fmt.Errorf("entry %d: %w", want, err)
			}
		default:
			// The old kinds of configuration among them: nobody writes them
			// since protocol version 2.
			return fmt.Errorf("entry %d: a %v", want, entry.Type)
		}
	}
	return nil
}

// checkSnapshot: what Raft takes from the request itself. What the data holds,
// only the FSM can say.
func checkSnapshot(r *raft.InstallSnapshotRequest) error {
	switch {
	case r.SnapshotVersion != raft.SnapshotVersionMax:
		// With version 0 the configuration would be an old list of peers.
		return fmt.Errorf("snapshot of version %d", r.SnapshotVersion)
	case r.Size < 0 || r.Size > snapshotBytesMax:
		return fmt.Errorf("snapshot of %d octets", r.Size)
	case r.LastLogIndex == 0 || r.LastLogIndex > indexMax || r.ConfigurationIndex > r.LastLogIndex:
		return fmt.Errorf("snapshot up to entry %d with the configuration of entry %d", r.LastLogIndex, r.ConfigurationIndex)
	case r.LastLogTerm > r.Term:
		return fmt.Errorf("snapshot of term %d in a request of term %d", r.LastLogTerm, r.Term)
	}
	if err := checkConfiguration(r.Configuration); err != nil {
		return fmt.Errorf("snapshot: %w", err)
	}
	return nil
}

// checkConfiguration holds a configuration to what Raft asks of its own
// (configuration.go:192), which it does not ask of a leader's.
func checkConfiguration(encoded []byte) error {
	if len(encoded) > EntryBytesMax {
		return fmt.Errorf("configuration of %d octets", len(encoded))
	}
	c, err := decodeConfiguration(encoded)
	if err != nil {
		return err
	}
	ids, addresses := make(map[raft.ServerID]bool), make(map[raft.ServerAddress]bool)
	voters := 0
	for _, s := range c.Servers {
		switch {
		case s.ID == "" || s.Address == "":
			return errors.New("configuration: a server without id or address")
		case ids[s.ID] || addresses[s.Address]:
			return errors.New("configuration: an id or address twice")
		case s.Suffrage < raft.Voter || s.Suffrage > raft.Staging:
			return fmt.Errorf("configuration: suffrage %d", s.Suffrage)
		}
		ids[s.ID], addresses[s.Address] = true, true
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	if voters == 0 {
		return errors.New("configuration: no voter")
	}
	return nil
}

// decodeConfiguration is raft.DecodeConfiguration, which panics.
func decodeConfiguration(encoded []byte) (c raft.Configuration, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("configuration: %v", p)
		}
	}()
	return raft.DecodeConfiguration(encoded), nil
}
