//go:build !linux

package transport

// setDeadPeerOptions does nothing where the names of the options differ. A dead
// peer is then found out by the protocols above.
func setDeadPeerOptions(int) error { return nil }
