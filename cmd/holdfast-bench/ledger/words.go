package ledger

import (
	"iter"
	"strings"
)

// fields yields the words of a Received field, without its comments, in which
// "id" may stand for other things.
func fields(field []byte) iter.Seq[string] {
	return func(yield func(string) bool) {
		depth := 0
		var plain strings.Builder
		for _, b := range field {
			switch {
			case b == '(':
				depth++
			case b == ')' && depth > 0:
				depth--
			case depth == 0:
				plain.WriteByte(b)
			}
		}
		for word := range strings.FieldsSeq(plain.String()) {
			if !yield(word) {
				return
			}
		}
	}
}

// trimClause takes the semicolon off that ends the clauses of the field.
func trimClause(word string) string { return strings.Trim(word, ";<>") }
