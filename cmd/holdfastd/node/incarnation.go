package node

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// incarnationFile names the life of a data directory: it is drawn when the
// directory is made and goes with it. A node that lost its disk comes back
// under another one, so that Raft never takes it for the server whose votes and
// log are gone.
const incarnationFile = "incarnation"

// incarnationBytes is how many random bytes an incarnation is drawn from.
const incarnationBytes = 8

// loadIncarnation reads the data directory's incarnation, drawing one for an
// empty directory. A directory that holds other data but no incarnation is
// refused: it is not ours, or it was damaged.
func loadIncarnation(dir string, entropy io.Reader) (string, error) {
	name := filepath.Join(dir, incarnationFile)
	text, err := os.ReadFile(name)
	if err == nil {
		incarnation := strings.TrimSpace(string(text))
		if raw, err := hex.DecodeString(incarnation); err != nil || len(raw) != incarnationBytes {
			return "", fmt.Errorf("%s does not hold an incarnation: restore it, or start with an empty data_dir", name)
		}
		return incarnation, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("read the incarnation: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make data_dir: %w", err)
	}
	for _, data := range []string{raftDir, spoolDir} {
		if _, err := os.Stat(filepath.Join(dir, data)); err == nil {
			return "", fmt.Errorf("%s holds %s but no %s: it is damaged, or was not made by holdfastd", dir, data, incarnationFile)
		}
	}
	raw := make([]byte, incarnationBytes)
	if _, err := io.ReadFull(entropy, raw); err != nil {
		return "", fmt.Errorf("draw an incarnation: %w", err)
	}
	incarnation := hex.EncodeToString(raw)
	if err := writeDurably(dir, incarnationFile, incarnation+"\n"); err != nil {
		return "", fmt.Errorf("record the incarnation: %w", err)
	}
	return incarnation, nil
}

// writeDurably makes a small file appear whole or not at all, also over a power
// cut: create, write, fsync, rename, fsync of the directory.
func writeDurably(dir, name, content string) error {
	f, err := os.CreateTemp(dir, name+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), filepath.Join(dir, name)); err != nil {
		return err
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
