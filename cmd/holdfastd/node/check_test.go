package node

import (
	"encoding/base64"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/transport"
	"github.com/holdfast-mx/holdfast/cmd/holdfastd/config"
)

// TestCheckSaysWhere: what is wrong with a certificate is reported at the line
// of the file that names it.
func TestCheckSaysWhere(t *testing.T) {
	dir := t.TempDir()
	ca, err := transport.CreateCA("mx", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := transport.IssueNode(ca, "n2", nil, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for base, p := range map[string]transport.Pair{"ca": ca, "node": pair} {
		if _, _, err := p.WriteFiles(dir, base); err != nil {
			t.Fatal(err)
		}
	}
	key := base64.StdEncoding.EncodeToString(make([]byte, config.GossipKeyBytes))
	if err := os.WriteFile(filepath.Join(dir, "gossip.key"), []byte(key), 0o600); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "f")
	for name, test := range map[string]struct{ cluster, node, want string }{
		"as it should be": {"mx", "n2", ""},
		"another node":    {"mx", "n1", `:10: cert: ` + dir + `/node.crt is that of node "n2", not of "n1"`},
		"another cluster": {"my", "n2", `:10: cert: identity from ` + dir + `/node.crt: wrong cluster`},
	} {
		text := fmt.Sprintf(`cluster = %q
node = %q
hostname = "n1.example.net"
data_dir = "data"
smtp_listen = ["127.0.0.1:2525"]
cluster_listen = "127.0.0.1:7420"
gossip_listen = "127.0.0.1:7421"
gossip_key_file = "gossip.key"
ca = "ca.crt"
cert = "node.crt"
key = "node.key"
`, test.cluster, test.node)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c, err := config.Load(file)
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := Check(c); err != nil {
			got = err.Error()
		}
		if want := test.want; (want == "") != (got == "") || !strings.HasPrefix(got, strings.Repeat(file, min(1, len(want)))+want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
}
