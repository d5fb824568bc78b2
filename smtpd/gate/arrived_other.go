//go:build !linux

package gate

import "net"

// socketArrived knows nothing here, so no 250 is ever taken for read.
func socketArrived(net.Conn) (int, bool) { return 0, false }
