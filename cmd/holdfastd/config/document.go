package config

import (
	"bytes"
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// A value is what stands behind the equals sign, as the file has it.
type value struct {
	kind  unstable.Kind
	text  string // of a string its content, of a number its digits
	items []value
	line  int
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
// The decoder of go-toml stops at the first value of a wrong type and knows no
// line for a duplicate, so it judges only the syntax here; keys, lines and
// values come from its parser.
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
	var all map[string]any
	syntax := toml.Unmarshal(data, &all)
	var decode *toml.DecodeError
	if errors.As(syntax, &decode) {
		line, _ := decode.Position()
		add(line, "", "is not TOML: %s", bareMessage(decode))
		return nil, problems
	}

	var settings []setting
	first := map[string]int{} // the line on which a key was given first
	var p unstable.Parser
	p.Reset(data)
	for p.NextExpression() {
		switch e := p.Expression(); e.Kind {
		case unstable.Comment:
		case unstable.Table, unstable.ArrayTable:
			key, line := keyOf(&p, e.Key())
			add(line, key, "is a table: this file has none, write every key at the top level")
		case unstable.KeyValue:
			key, line := keyOf(&p, e.Key())
			if before, ok := first[key]; ok {
				add(line, key, "is given twice, first on line %d: remove one", before)
				continue
			}
			first[key] = line
			settings = append(settings, setting{key: key, line: line, value: valueOf(&p, e.Value(), line)})
		}
	}
	if syntax == nil {
		syntax = p.Error()
	}
	if syntax != nil && len(problems) == 0 {
		add(1, "", "is not TOML: %v", syntax)
	}
	return settings, problems
}

// keyOf joins the parts of a possibly dotted key.
func keyOf(p *unstable.Parser, parts unstable.Iterator) (key string, line int) {
	for parts.Next() {
		n := parts.Node()
		if line == 0 {
			line = p.Shape(n.Raw).Start.Line
		} else {
			key += "."
		}
		key += string(n.Data)
	}
	return key, line
}

// valueOf copies what the parser will overwrite at its next step.
func valueOf(p *unstable.Parser, n *unstable.Node, line int) value {
	v := value{kind: n.Kind, text: string(n.Data), line: line}
	if n.Raw.Length > 0 {
		v.line = p.Shape(n.Raw).Start.Line
	}
	if n.Kind == unstable.Array {
		for items := n.Children(); items.Next(); {
			if item := items.Node(); item.Kind != unstable.Comment {
				v.items = append(v.items, valueOf(p, item, v.line))
			}
		}
	}
	return v
}

// bareMessage is the decoder's message without its own name before it.
func bareMessage(err *toml.DecodeError) string {
	return string(bytes.TrimPrefix([]byte(err.Error()), []byte("toml: ")))
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
