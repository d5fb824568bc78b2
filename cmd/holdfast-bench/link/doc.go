// Package link puts distance between a client and a server on one host: a TCP
// proxy on which all that one side sends takes half a round trip to the other.
//
// It promises order, that nothing is lost or altered, and that the end of a
// direction takes as long as its octets. The server gets to know of a connection
// one and a half round trips after the client opened it, as of one whose SYN,
// SYN-ACK and ACK had to travel (RFC 9293 section 3.5): a server that speaks
// first is heard two round trips after the connect. For a connection that the
// server does not take the client's ends.
//
// Each direction of a connection holds chunksMax pieces of chunkBytes octets;
// who sends more waits, as for a full window.
//
// It refuses to be a network: there is no loss, no bandwidth, and no slow start.
// Real connections begin slowly, so that whoever opens many looks better here
// than he is.
package link
