package peer

import (
	pb "github.com/holdfast-mx/holdfast/proto/peerpb"
)

var scrubActions = map[ScrubAction]pb.ScrubRequest_Action{
	ScrubStart: pb.ScrubRequest_START, ScrubStop: pb.ScrubRequest_STOP, ScrubLook: pb.ScrubRequest_LOOK,
}

func hydrationToProto(h Hydration) *pb.HydrationReport {
	return &pb.HydrationReport{
		Known: h.Known, Missing: h.Missing, MissingBytes: octets(h.MissingBytes),
		Fetched: h.Fetched, FetchedBytes: octets(h.FetchedBytes), Rate: octets(h.Rate),
		NotFound: h.NotFound, Lost: h.Lost, WaitingFor: clip(h.WaitingFor), LastError: clip(h.LastError), LastErrorUnix: h.LastErrorUnix,
	}
}

// hydrationFromProto is what a peer says, or nothing known where it says nothing.
func hydrationFromProto(h *pb.HydrationReport) Hydration {
	return Hydration{
		Known: h.GetKnown(), Missing: h.GetMissing(), MissingBytes: byteSize(h.GetMissingBytes()),
		Fetched: h.GetFetched(), FetchedBytes: byteSize(h.GetFetchedBytes()), Rate: byteSize(h.GetRate()),
		NotFound: h.GetNotFound(), Lost: h.GetLost(), WaitingFor: clip(h.GetWaitingFor()), LastError: clip(h.GetLastError()), LastErrorUnix: h.GetLastErrorUnix(),
	}
}

// scrubToProto is nil where there was no scrub.
func scrubToProto(s Scrub) *pb.ScrubReport {
	if s == (Scrub{}) {
		return nil
	}
	return &pb.ScrubReport{
		Running: s.Running, Stopped: s.Stopped, BeganUnix: s.BeganUnix, EndedUnix: s.EndedUnix,
		Bodies: s.Bodies, Bytes: octets(s.Bytes), TotalBodies: s.Total, TotalBytes: octets(s.TotalBytes),
		Bad: s.Bad, Repaired: s.Repaired, Unread: s.Unread, Problem: clip(s.Problem),
	}
}

func scrubFromProto(s *pb.ScrubReport) Scrub {
	return Scrub{
		Running: s.GetRunning(), Stopped: s.GetStopped(), BeganUnix: s.GetBeganUnix(), EndedUnix: s.GetEndedUnix(),
		Bodies: s.GetBodies(), Bytes: byteSize(s.GetBytes()), Total: s.GetTotalBodies(), TotalBytes: byteSize(s.GetTotalBytes()),
		Bad: s.GetBad(), Repaired: s.GetRepaired(), Unread: s.GetUnread(), Problem: clip(s.GetProblem()),
	}
}
