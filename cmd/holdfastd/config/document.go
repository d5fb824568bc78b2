package config

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A value is what stands behind the equals sign, as the file has it.
type value struct {
	kind  unstable.Kind
	text  string // of a string its content, of a number its digits
	items []value
}

// A setting is one "key = value" of the file.
type setting struct {
	key   string
	line  int
	value value
}

// problemsMax bounds how many problems a hostile file can have us print.
const problemsMax = 100

// parseDocument splits a file into its settings. It reports what is no TOML, a
// table (the file is flat), and a key given twice.
//
// The decoder of go-toml stops at the first problem and knows no line for each,
// so keys, lines and values come from its parser.
func parseDocument(file string, data []byte) ([]setting, Problems) {
	var problems Problems
	add := func(line int, key, format string, args ...any) {
		if len(problems) < problemsMax {
			problems = append(problems, Problem{File: file, Line: line, Key: key, Text: fmt.Sprintf(format, args...)})
		}
	}
	if !utf8.Valid(data) {
		add(invalidUTF8Line(data), "", "is not UTF-8: save the file as UTF-8")
		return nil, problems
	}
	d := document{starts: lineStarts(data)}
	var settings []setting
	first := map[string]int{} // the line on which a key was given first
	d.parser.Reset(data)
	for expressions := 0; d.parser.NextExpression(); expressions++ {
		e := d.parser.Expression()
		if e.Kind != unstable.KeyValue && e.Kind != unstable.Table && e.Kind != unstable.ArrayTable {
			continue // a comment
		}
		key, line := d.key(e.Key())
		switch {
		case expressions == expressionsMax:
			add(line, "", "is one of more than %d settings: this is no configuration of ours", expressionsMax)
			return nil, problems
		case e.Kind != unstable.KeyValue:
			add(line, key, "is a table: this file has none, write every key at the top level")
		case first[key] > 0:
			add(line, key, "is given twice, first on line %d: remove one", first[key])
		default:
			first[key] = line
			settings = append(settings, setting{key: key, line: line, value: d.value(e.Value())})
		}
	}
	var syntax *unstable.ParserError
	switch err := d.parser.Error(); {
	case errors.As(err, &syntax):
		return nil, Problems{notTOML(file, d.line(d.parser.Range(syntax.Highlight)), syntax.Message)}
	case err != nil:
		return nil, Problems{notTOML(file, 1, err.Error())}
	}
	return settings, problems
}

// expressionsMax is far more than there are keys. It bounds what a file that is
// no configuration can cost.
const expressionsMax = 1000

func notTOML(file string, line int, cause string) Problem {
	return Problem{File: file, Line: line, Text: "is not TOML: " + strings.TrimPrefix(cause, "toml: ")}
}

// strictSyntax reports what the parser lets pass that is no TOML after all,
// numbers above all. It is for a file in which nothing else is wrong: the
// decoder takes hours for some files that have only to be refused.
func strictSyntax(file string, data []byte) Problems {
	var all map[string]any
	err := toml.Unmarshal(data, &all)
	if err == nil {
		return nil
	}
	line := 1
	var decode *toml.DecodeError
	if errors.As(err, &decode) {
		line, _ = decode.Position()
	}
	return Problems{notTOML(file, line, err.Error())}
}

// A document is a file that is being parsed.
type document struct {
	parser unstable.Parser
	starts []int // the offset at which each line starts
}

func lineStarts(data []byte) []int {
	starts := []int{0}
	for i, c := range data {
		if c == '\n' {
			starts = append(starts, i+1)
		}
	}
	return starts
}

// line returns the line of a part of the file. The parser's own Shape counts
// from the start each time, which a hostile file makes minutes of.
func (d *document) line(r unstable.Range) int {
	n, _ := slices.BinarySearch(d.starts, int(r.Offset)+1)
	return n
}

// key joins the parts of a possibly dotted key, and cuts what is too long to be
// one of ours.
func (d *document) key(parts unstable.Iterator) (key string, line int) {
	for parts.Next() && len(key) <= keyBytesMax {
		n := parts.Node()
		if line == 0 {
			line = d.line(n.Raw)
		} else {
			key += "."
		}
		key += string(n.Data)
	}
	if len(key) > keyBytesMax {
		key = strings.ToValidUTF8(key[:keyBytesMax], "") + "..."
	}
	return key, line
}

// value copies what the parser will overwrite at its next step.
func (d *document) value(n *unstable.Node) value {
	v := value{kind: n.Kind, text: string(n.Data)}
	if n.Kind == unstable.Array {
		for items := n.Children(); items.Next(); {
			if item := items.Node(); item.Kind != unstable.Comment {
				v.items = append(v.items, d.value(item))
			}
		}
	}
	return v
}

func invalidUTF8Line(data []byte) int {
	line := 1
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		if r == utf8.RuneError && n == 1 {
			break
		}
		if r == '\n' {
			line++
		}
		data = data[n:]
	}
	return line
}
