package delivery

import "unicode/utf8"

// cutText returns at most n octets of s, cut at the start of a rune.
func cutText(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}
