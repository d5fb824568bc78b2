// Package fleet runs the nodes of a cluster as processes on this host, from
// the real binaries and over their public interfaces only: configuration
// files, signals, and the holdfast command.
//
// It makes a throw-away certificate authority, a directory and a configuration
// for each node, starts, kills and stops them, tells which one leads, and
// measures what they send each other and how much memory they take. It is for demos and
// for tests of the real thing: everything that it makes lies in one directory.
//
// It promises that no process it started outlives Stop, nor the process that
// uses it; that a node that ended without being told to is reported, with the
// end of its log; and that the ports it chose are not ones that the system
// gives to outgoing connections, so that a killed node can always return.
package fleet
