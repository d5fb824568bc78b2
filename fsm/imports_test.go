package fsm_test

import (
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// The rooms under the law that everything in them is pure: the same commands
// give the same bytes on every node, at any time, in any order of goroutines.
var pureRooms = map[string]map[string]string{
	".": {
		"bufio": "records to and from a stream", "bytes": "", "cmp": "", "encoding/binary": "",
		"compress/flate": "snapshots; a pure function",
		"crypto/sha256":  "fingerprints", "errors": "", "fmt": "",
		"io":                       "the interfaces that Encode and Decode are given",
		"iter":                     "",
		"net/netip":                "a value type; the client's address in the trace",
		"slices":                   "",
		"strings":                  "",
		"unicode/utf8":             "",
		"github.com/tidwall/btree": "the one container, wrapped in tree.go; without its locks",
		"google.golang.org/protobuf/encoding/protowire": "the records of messages in snapshots",
		"google.golang.org/protobuf/proto":              "formats; only with Deterministic",
		"github.com/holdfast-mx/holdfast/fsm/mail":      "the vocabulary",
		"github.com/holdfast-mx/holdfast/proto/queuepb": "formats",
	},
	"mail": {
		"bytes": "", "cmp": "", "crypto/sha256": "digests of bodies", "encoding/binary": "", "encoding/hex": "", "errors": "", "fmt": "", "hash": "",
		"hash/crc32":               "checksums of bodies",
		"io":                       "a reader over a body in memory",
		"net/netip":                "a value type",
		"strings":                  "",
		"unicode/utf8":             "",
		"github.com/oklog/ulid/v2": "the form of queue ids; only what is pure in it",
		"golang.org/x/net/idna":    "U-labels to A-labels, by tables",
	},
}

// bans says why a package must not be imported, for whoever wants it.
var bans = map[string]string{
	"time":         "log time comes in Tick commands; a clock differs between nodes",
	"os":           "no I/O: State is memory, the shell has the disk",
	"net":          "no I/O; net/netip has the values",
	"math/rand":    "a random choice differs between nodes",
	"math/rand/v2": "a random choice differs between nodes",
	"crypto/rand":  "ids are minted by the accepting node, before the command",
	"log":          "Apply returns what there is to say",
	"log/slog":     "Apply returns what there is to say",
	"sync":         "one goroutine applies; Snapshot is what others read",
	"sync/atomic":  "one goroutine applies; Snapshot is what others read",
	"context":      "nothing here waits",
	"runtime":      "what it says differs between nodes",
	"unsafe":       "no command may break memory",
	"reflect":      "nothing here is decided by names of types",
	"maps":         "its iterators have no order; use a tree, or sort",
	"sort":         "use slices",
}

// bannedNames are what an allowed package has and no pure room may use.
var bannedNames = map[string]string{
	"proto.Marshal":       "the order of its bytes is not promised; use MarshalOptions{Deterministic: true}",
	"ulid.Make":           "reads the clock and draws random bits",
	"ulid.Now":            "reads the clock",
	"ulid.DefaultEntropy": "draws random bits",
	"ulid.New":            "draws random bits",
	"ulid.MustNew":        "draws random bits",
}

func TestPureRooms(t *testing.T) {
	for dir, allowed := range pureRooms {
		fset, files := parseRoom(t, dir)
		for _, f := range files {
			for _, i := range f.Imports {
				path, _ := strconv.Unquote(i.Path.Value)
				if _, ok := allowed[path]; ok {
					continue
				}
				why := bans[path]
				if why == "" {
					why = "it is not on the list of what a pure room needs"
				}
				t.Errorf("%s imports %q: %s", fset.Position(i.Pos()), path, why)
			}
		}
		for _, flaw := range impure(fset, files) {
			t.Errorf("%s", flaw)
		}
	}
}

// TestPureRoomsSeesEach proves that each impurity is seen.
func TestPureRoomsSeesEach(t *testing.T) {
	for what, body := range map[string]string{
		"go statement":     "go f()",
		"channel":          "var c chan int; _ = c",
		"select statement": "select {}",
		"range over a map": "m := make(map[string]int); for k := range m { _ = k }",
		"proto.Marshal":    "proto.Marshal(nil)",
		"package variable": "}; var x = 1; func g() {",
		"init":             "}; func init() {",
	} {
		fset := token.NewFileSet()
		f, err := parser.ParseFile(fset, "x.go", "package x\nfunc f() {"+body+"}", 0)
		if err != nil {
			t.Fatal(err)
		}
		if len(impure(fset, []*ast.File{f})) != 1 {
			t.Errorf("%s is not seen", what)
		}
	}
}

func parseRoom(t *testing.T, dir string) (*token.FileSet, []*ast.File) {
	t.Helper()
	fset := token.NewFileSet()
	paths, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, p := range paths {
		if strings.HasSuffix(p, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(fset, p, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if len(files) == 0 {
		t.Fatalf("no files in %s: %v", dir, fs.ErrNotExist)
	}
	return fset, files
}

// noImports lets the type checker go on without the imported packages: what is
// a map is known without them.
type noImports struct{}

func (noImports) Import(string) (*types.Package, error) { return nil, errors.New("not needed") }

// impure lists what makes a result depend on more than the commands.
func impure(fset *token.FileSet, files []*ast.File) []string {
	info := &types.Info{Types: make(map[ast.Expr]types.TypeAndValue)}
	config := types.Config{Importer: noImports{}, Error: func(error) {}}
	_, _ = config.Check("room", fset, files, info)
	var flaws []string
	say := func(n ast.Node, what string) { flaws = append(flaws, fset.Position(n.Pos()).String()+": "+what) }
	for _, f := range files {
		for _, d := range f.Decls {
			if g, ok := d.(*ast.GenDecl); ok && g.Tok == token.VAR && !sentinels(g) {
				say(g, "package variable: state outside the State")
			}
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				say(fn, "init: state outside the State")
			}
		}
		ast.Inspect(f, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.GoStmt:
				say(n, "go statement: Apply is one goroutine")
			case *ast.ChanType:
				say(n, "channel: nothing here waits")
			case *ast.SelectStmt:
				say(n, "select: nothing here waits")
			case *ast.RangeStmt:
				if tv, ok := info.Types[n.X]; ok && tv.Type != nil {
					if _, is := tv.Type.Underlying().(*types.Map); is {
						say(n, "range over a map: its order differs between nodes")
					}
				}
			case *ast.SelectorExpr:
				if x, ok := n.X.(*ast.Ident); ok {
					if why := bannedNames[x.Name+"."+n.Sel.Name]; why != "" {
						say(n, x.Name+"."+n.Sel.Name+": "+why)
					}
				}
			}
			return true
		})
	}
	return flaws
}

// sentinels reports whether a var declaration declares nothing but errors.
func sentinels(g *ast.GenDecl) bool {
	for _, s := range g.Specs {
		for _, v := range s.(*ast.ValueSpec).Values {
			call, ok := v.(*ast.CallExpr)
			if !ok {
				return false
			}
			if sel, ok := call.Fun.(*ast.SelectorExpr); !ok || sel.Sel.Name != "New" {
				return false
			}
		}
	}
	return true
}
