// Package node joins the rooms into one running Holdfast node. It is the only
// package that sees them all; it holds no rules of its own beyond the order in
// which things start and stop, and the translation of one room's words into
// another's.
package node
