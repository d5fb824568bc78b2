// Package cell gives a program namespaces of its own: network, mounts, processes
// and host name. In its cell it can take port 25, lay files of its own over those
// of the host, mount file systems and make interfaces, and nothing of it is seen
// outside. With the program its cell ends, and so do all processes, mounts and
// loop devices in it, however the program ended.
//
// It needs Linux and root.
package cell
