package consensus

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/holdfast-mx/holdfast/cluster/vfs"
)

// logIDKey is where the stable store names the log that belongs to it.
var logIDKey = []byte("HoldfastLog")

const (
	// logIDFile is where the log says its own name.
	logIDFile  = "ID"
	logIDBytes = 8
)

// bindLog makes sure that the log in dir is the one that term, vote and floor
// belong to: without its log, or with another one, a member would go on as if it
// had never acknowledged what stood in it. The name lies in a file beside the
// segments and in the stable store; the file comes first.
func bindLog(files vfs.FS, dir string, stable raft.StableStore) error {
	want, err := stable.Get(logIDKey)
	if err != nil && !isKeyNotFound(err) {
		return fmt.Errorf("read the name of the log: %w", err)
	}
	have, err := readLogID(files, dir)
	switch {
	case err != nil:
		return fmt.Errorf("read the name of the log in %s: %w", dir, err)
	case len(want) > 0 && string(have) == string(want):
		return nil
	case len(want) > 0:
		return damaged(fmt.Errorf("the log in %s is not the one that the node's term and vote belong to", dir))
	case len(have) == 0:
		if have, err = writeLogID(files, dir); err != nil {
			return fmt.Errorf("name the log in %s: %w", dir, err)
		}
	}
	if err := stable.Set(logIDKey, have); err != nil {
		return fmt.Errorf("record the name of the log: %w", err)
	}
	return nil
}

// readLogID returns nothing where there is no whole name: the power failed while
// it was written, and nothing else was written since.
func readLogID(files vfs.FS, dir string) ([]byte, error) {
	f, err := files.Open(filepath.Join(dir, logIDFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	id := make([]byte, hex.EncodedLen(logIDBytes))
	n, err := f.ReadAt(id, 0)
	if cerr := f.Close(); cerr != nil {
		return nil, cerr
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if _, err := hex.DecodeString(string(id[:n])); err != nil || n < len(id) {
		return nil, nil
	}
	return id, nil
}

func writeLogID(files vfs.FS, dir string) ([]byte, error) {
	raw := make([]byte, logIDBytes)
	if _, err := rand.Read(raw); err != nil {
		return nil, err
	}
	id := []byte(hex.EncodeToString(raw))
	name := filepath.Join(dir, logIDFile)
	f, err := files.Create(name)
	if errors.Is(err, fs.ErrExist) {
		f, err = files.OpenWrite(name)
	}
	if err != nil {
		return nil, err
	}
	n, err := f.WriteAt(id, 0)
	if err == nil && n < len(id) {
		err = io.ErrShortWrite
	}
	if err == nil {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return id, files.SyncDir(dir)
}

// migrateBatch is how many entries are moved with one sync.
const migrateBatch = 512

// migrateLog moves the entries that an older version kept in raft-boltdb into
// the segments. It is only when all are there that they are deleted from where
// they were, and until then nothing else is in the segments; so it can be broken
// off anywhere and done again.
func migrateLog(from raft.LogStore, to *segmentLog) error {
	first, err := from.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the older log: %w", err)
	}
	last, err := from.LastIndex()
	if err != nil {
		return fmt.Errorf("read the older log: %w", err)
	}
	if first == 0 {
		return nil
	}
	if f, l := to.log.Bounds(); f != 0 {
		if err := to.DeleteRange(f, l); err != nil {
			return fmt.Errorf("drop what was moved half: %w", err)
		}
	}
	var batch []*raft.Log
	for index := first; index <= last; index++ {
		l := new(raft.Log)
		if err := from.GetLog(index, l); errors.Is(err, raft.ErrLogNotFound) {
			// Entries before a gap are older than a snapshot that was installed.
			batch = nil
			if f, t := to.log.Bounds(); f != 0 {
				if err := to.DeleteRange(f, t); err != nil {
					return fmt.Errorf("drop entries before a gap: %w", err)
				}
			}
			continue
		} else if err != nil {
			return fmt.Errorf("read entry %d of the older log: %w", index, err)
		}
		batch = append(batch, l)
		// The last one is a batch of its own. Of the last batch the start-up check may
		// cut off what has no body, and there all bodies were durable.
		if len(batch) < migrateBatch && index+1 < last {
			continue
		}
		if err := to.StoreLogs(batch); err != nil {
			return fmt.Errorf("move the older log: %w", err)
		}
		batch = nil
	}
	if err := from.DeleteRange(first, last); err != nil {
		return fmt.Errorf("delete the older log: %w", err)
	}
	return nil
}
