package consensus

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
)

// incarnationKey is where the stable store holds the incarnation.
var incarnationKey = []byte("HoldfastIncarnation")

// incarnationBytes is how many random bytes an incarnation is drawn from.
const incarnationBytes = 8

// ErrNoIncarnation: the stores hold a log, a term, a floor or a snapshot, and no
// incarnation. They are ErrDamaged, too.
var ErrNoIncarnation = errors.New("the stores have state and no incarnation")

// Incarnation returns the name of the life of these stores, drawing one from
// entropy for empty stores. It lies beside term and vote, so that none can be
// lost without the other: a member whose log and votes are gone comes back
// under a new server id, which has no vote, and the old one, whose promises it
// cannot keep, never speaks again.
func (s Stores) Incarnation(entropy io.Reader) (string, error) {
	value, err := s.Stable.Get(incarnationKey)
	if err != nil && !isKeyNotFound(err) {
		return "", fmt.Errorf("read the incarnation: %w", err)
	}
	if len(value) > 0 {
		return string(value), nil
	}
	if err := s.checkEmpty(); errors.Is(err, ErrNoIncarnation) {
		return "", damaged(err)
	} else if err != nil {
		return "", err
	}
	raw := make([]byte, incarnationBytes)
	if _, err := io.ReadFull(entropy, raw); err != nil {
		return "", fmt.Errorf("draw an incarnation: %w", err)
	}
	incarnation := hex.EncodeToString(raw)
	if err := s.Stable.Set(incarnationKey, []byte(incarnation)); err != nil {
		return "", fmt.Errorf("record the incarnation: %w", err)
	}
	return incarnation, nil
}

// checkEmpty returns nil when nothing was ever stored.
func (s Stores) checkEmpty() error {
	last, err := s.Log.LastIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	if last > 0 {
		return fmt.Errorf("%w: the log ends at %d", ErrNoIncarnation, last)
	}
	for _, key := range [][]byte{[]byte("CurrentTerm"), floorKey} { // raft.go:36 and ours
		n, err := s.Stable.GetUint64(key)
		if err != nil && !isKeyNotFound(err) {
			return fmt.Errorf("read %s: %w", key, err)
		}
		if n > 0 {
			return fmt.Errorf("%w: %s is %d", ErrNoIncarnation, key, n)
		}
	}
	snapshots, err := s.Snapshots.List()
	if err != nil {
		return fmt.Errorf("list the snapshots: %w", err)
	}
	if len(snapshots) > 0 {
		return fmt.Errorf("%w: there is a snapshot up to entry %d", ErrNoIncarnation, snapshots[0].Index)
	}
	return nil
}

// isKeyNotFound: a StableStore says so in these words, or with a zero value, by
// Raft's convention (raft.go:39).
func isKeyNotFound(err error) bool { return err.Error() == "not found" }
