package gossip

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/holdfast-mx/holdfast/cluster/transport"
)

// The peers file has a line for each member that was seen, so that a node finds
// its cluster again even if the configured addresses are out of date:
//
//	name SP gossip address SP meta in base64 LF
//
// It is only ever replaced as a whole. Nothing is lost with it but time.
const (
	peersFileMode     os.FileMode = 0o600
	peersFileBytesMax             = membersMax * (transportNameMax + 64 + MetaBytesMax*4/3 + 8)
	transportNameMax              = 64
)

// readPeers reads the file. A file that is not there is empty; a line that
// cannot be read is skipped and reported.
func readPeers(name string) ([]Member, error) {
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, fmt.Errorf("read peers file: %w", err)
	}
	if info.Size() > peersFileBytesMax {
		return nil, fmt.Errorf("read peers file: %s has %d bytes, at most %d", name, info.Size(), peersFileBytesMax)
	}
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("read peers file: %w", err)
	}
	var members []Member
	var errs []error
	for line := range strings.Lines(string(data)) {
		m, err := parsePeer(strings.TrimSuffix(line, "\n"))
		if err != nil {
			errs = append(errs, err)
			continue
		}
		members = append(members, m)
	}
	return members, errors.Join(errs...)
}

func parsePeer(line string) (Member, error) {
	bad := func(err error) (Member, error) {
		return Member{}, fmt.Errorf("peers file: line %.80q: %w", line, err)
	}
	fields := strings.Split(line, " ")
	if len(fields) != 3 {
		return bad(errors.New("want three fields"))
	}
	if err := transport.CheckName(fields[0]); err != nil {
		return bad(err)
	}
	if _, err := netip.ParseAddrPort(fields[1]); err != nil {
		return bad(err)
	}
	encoded, err := base64.StdEncoding.DecodeString(fields[2])
	if err != nil {
		return bad(err)
	}
	meta, err := decodeMeta(encoded)
	if err != nil {
		return bad(err)
	}
	return Member{Name: fields[0], Status: Dead, GossipAddr: fields[1], Meta: meta}, nil
}

// writePeers replaces the file: a crash leaves the old one or the new one.
func writePeers(name string, members []Member) (err error) {
	var b bytes.Buffer
	for _, m := range members {
		encoded, err := m.encode()
		if err != nil {
			continue // It was decoded from as many bytes.
		}
		fmt.Fprintf(&b, "%s %s %s\n", m.Name, m.GossipAddr, base64.StdEncoding.EncodeToString(encoded))
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write peers file: %w", err)
		}
	}()
	f, err := os.CreateTemp(filepath.Dir(name), filepath.Base(name)+".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(b.Bytes())
	err = errors.Join(err, f.Chmod(peersFileMode), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}
