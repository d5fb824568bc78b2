package consensus

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime/debug"
	"slices"
	"sync/atomic"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// recordKey is the one value in raft-boltdb's bucket of values.
const recordKey = "HoldfastStable"

// confBucket is what raft-boltdb calls that bucket.
var confBucket = []byte("conf")

// A boltStable keeps the stable record in raft-boltdb. It reads the record
// once, when it is opened; from then on the values in memory are those on the
// disk. It is safe for concurrent use; writes are taken in turn.
type boltStable struct {
	db *raftboltdb.BoltStore
	// Invariant: record is what is on the disk.
	record  atomic.Pointer[stableRecord]
	writing chan struct{} // one token; no mutex, since the write is slow
}

var _ raft.StableStore = (*boltStable)(nil)

func newBoltStable(db *raftboltdb.BoltStore, r stableRecord) *boltStable {
	s := &boltStable{db: db, writing: make(chan struct{}, 1)}
	s.record.Store(&r)
	return s
}

// Get returns a value, nil where there is none.
func (s *boltStable) Get(key []byte) ([]byte, error) {
	return bytes.Clone(s.record.Load().values[string(key)]), nil
}

// Set stores a value, durably, before it returns. What is there already is not
// written again.
func (s *boltStable) Set(key, value []byte) error {
	s.writing <- struct{}{}
	defer func() { <-s.writing }()
	before := s.record.Load()
	if old, ok := before.values[string(key)]; ok && bytes.Equal(old, value) {
		return nil
	}
	after := before.with(string(key), value)
	encoded, err := after.encode()
	if err != nil {
		return err
	}
	if err := guarded(func() error { return s.db.Set([]byte(recordKey), encoded) }); err != nil {
		return err
	}
	s.record.Store(&after)
	return nil
}

// GetUint64 returns a number, 0 where there is none.
func (s *boltStable) GetUint64(key []byte) (uint64, error) {
	value, ok := s.record.Load().values[string(key)]
	if !ok {
		return 0, nil
	}
	if len(value) != 8 {
		return 0, fmt.Errorf("%s: %d octets are no number", key, len(value))
	}
	return binary.BigEndian.Uint64(value), nil
}

// SetUint64 is Set for a number.
func (s *boltStable) SetUint64(key []byte, n uint64) error {
	return s.Set(key, binary.BigEndian.AppendUint64(nil, n))
}

// guarded runs what uses bbolt. It returns as an error what bbolt panics over,
// and a page of the file that cannot be read, which is a fault in its memory.
func guarded(do func() error) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("bbolt: %v", p)
		}
	}()
	return do()
}

// stable returns the record in a database that was read, or the values that an
// older version kept one by one and without checksums; then old is true.
//
// The two are told apart by the whole bucket: it holds the record and nothing
// else, or no record and only what the older version wrote, each value in the
// form that it has. They turn from one into the other in one transaction. So no
// single fault makes one look like the other: a record that is damaged is still
// no value of the older version, and a bucket that lost its record is empty, as
// the older version's is only before its first start has ended.
func (f *boltFile) stable() (r stableRecord, old bool, err error) {
	encoded, ok := f.values[recordKey]
	if ok && len(f.values) == 1 {
		if r, err = decodeStableRecord(encoded); err != nil {
			return stableRecord{}, false, fmt.Errorf("%s: %w", recordKey, err)
		}
		return r, false, nil
	}
	if len(f.values) == 0 && (f.logs > 0 || f.meta.transaction > boltNewTransaction) {
		return stableRecord{}, false, errors.New("term, vote and floor are gone")
	}
	for _, key := range slices.Sorted(maps.Keys(f.values)) {
		value := f.values[key]
		fits, known := oldValues[key]
		if !known || !fits(value) {
			return stableRecord{}, false, fmt.Errorf("%q, %d octets, is none of the values that are kept here", key, len(value))
		}
	}
	return stableRecord{revision: 1, values: f.values}, true, nil
}

// boltNewTransaction is the transaction in which raft-boltdb makes its buckets
// in a new file.
const boltNewTransaction = 2

// oldValues are the values of the older version and the forms that they have.
var oldValues = map[string]func([]byte) bool{
	"CurrentTerm":          isNumber,                                                   // raft.go:28
	"LastVoteTerm":         isNumber,                                                   // raft.go:29
	"LastVoteCand":         func(v []byte) bool { return bytes.IndexByte(v, '/') > 0 }, // raft.go:30: a server id
	string(floorKey):       isNumber,
	string(incarnationKey): isIncarnation,
}

func isNumber(v []byte) bool { return len(v) == 8 }

func isIncarnation(v []byte) bool {
	raw, err := hex.DecodeString(string(v))
	return err == nil && len(raw) == incarnationBytes
}

// adopt puts the record in the place of the values of the older version, in
// one transaction.
func adopt(path string, r stableRecord) error {
	encoded, err := r.encode()
	if err != nil {
		return err
	}
	return guarded(func() error {
		db, err := bbolt.Open(path, fileMode, boltOptions())
		if err != nil {
			return err
		}
		err = db.Update(func(tx *bbolt.Tx) error {
			conf, err := tx.CreateBucketIfNotExists(confBucket)
			if err != nil {
				return err
			}
			for key := range r.values {
				if err := conf.Delete([]byte(key)); err != nil {
					return err
				}
			}
			return conf.Put([]byte(recordKey), encoded)
		})
		return errors.Join(err, db.Close())
	})
}

// found makes a new database with an empty record. It gets its name when it is
// whole: a database without a record is always a damaged one.
func found(path string) error {
	draft := path + draftSuffix
	if err := os.Remove(draft); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	err := guarded(func() error {
		db, err := openBolt(draft)
		if err != nil {
			return err
		}
		encoded, err := stableRecord{}.encode()
		if err == nil {
			err = db.Set([]byte(recordKey), encoded)
		}
		return errors.Join(err, db.Close())
	})
	if err != nil {
		return err
	}
	return os.Rename(draft, path)
}

// draftSuffix marks a file that is not whole yet.
const draftSuffix = ".new"
