//go:build rig

package node

import (
	"fmt"
	"net"
	"net/http"
	_ "net/http/pprof" // serves /debug/pprof
	"os"
	"time"

	"github.com/holdfast-mx/holdfast/cluster/consensus"
)

// The switches of the build for benchmarks, which is never the product: make
// builds it into bin/rig.
const (
	// rigLog is where Raft's log lies: "bolt", or "" for the product's own way.
	rigLog = "HOLDFAST_RIG_LOG"
	// rigProfile is an address on which profiles are served, for go tool pprof.
	rigProfile = "HOLDFAST_RIG_PROFILE"
	// rigSyncDelay is how much longer each sync takes, for example 5ms.
	rigSyncDelay = "HOLDFAST_RIG_SYNC_DELAY"
)

func rig(s Seams) Seams {
	switch log := os.Getenv(rigLog); log {
	case "":
	case "bolt":
		s.Stores = consensus.OpenBoltStores
	default:
		panic(fmt.Sprintf("%s=%q: want bolt", rigLog, log))
	}
	if text := os.Getenv(rigSyncDelay); text != "" {
		delay, err := time.ParseDuration(text)
		if err != nil || delay <= 0 || os.Getenv(rigLog) != "" {
			panic(fmt.Sprintf("%s=%q: want for example 5ms, and no %s", rigSyncDelay, text, rigLog))
		}
		s = slowed(s, delay)
	}
	if address := os.Getenv(rigProfile); address != "" {
		l, err := net.Listen("tcp", address)
		if err != nil {
			panic(fmt.Sprintf("%s: %v", rigProfile, err))
		}
		s.Log.Info("profiles", "at", "http://"+l.Addr().String()+"/debug/pprof/")
		go func() { s.Log.Warn("no more profiles", "cause", http.Serve(l, nil)) }()
	}
	s.Log.Warn("this build is for benchmarks alone")
	return s
}
