package fleet

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
)

// Ports are chosen below the range that systems use for outgoing connections
// (32768 and up on Linux, 49152 elsewhere): a port of a killed node must still
// be free when it returns.
const (
	portMin   = 12_000
	portMax   = 31_000
	portTries = 500
)

// freePorts finds ports of the loopback address that are free for TCP and UDP.
func freePorts(count int) ([]int, error) {
	var ports []int
	var open []io.Closer
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for range portTries {
		if len(ports) == count {
			return ports, nil
		}
		port := portMin + rand.IntN(portMax-portMin)
		address := fmt.Sprintf("127.0.0.1:%d", port)
		tcp, err := net.Listen("tcp", address)
		if err != nil {
			continue
		}
		open = append(open, tcp)
		udp, err := net.ListenPacket("udp", address)
		if err != nil {
			continue
		}
		open = append(open, udp)
		ports = append(ports, port)
	}
	return nil, errors.New("no free ports on 127.0.0.1")
}

// FreeAddress returns an address of the loopback interface that is free, and
// that no outgoing connection will take.
func FreeAddress() (string, error) {
	ports, err := freePorts(1)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0]), nil
}
