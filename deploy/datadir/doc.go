// Package datadir knows what files a node keeps in its data directory, by their names.
//
// It is the one list of them for everything that tests with the directories of real
// nodes: what flips a bit chooses a file by its kind, and what finds a file of no kind
// fails. Whoever adds a file to a data directory adds it here, and says in deploy/sim
// (rot_test.go) what becomes of a bit that flips in it.
//
// It looks at names alone, opens nothing, and is not part of the product, which does not
// need it to find its files.
package datadir
