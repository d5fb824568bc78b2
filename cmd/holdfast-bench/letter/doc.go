// Package letter makes the messages of a run: deterministic from a seed, of
// the sizes and shapes that real mail has, and cheap enough that making them
// does not compete with the servers under test.
//
// The same seed and number give the same octets, so a run can be repeated, and
// a message that got no reply can be sent again as the same message. Bulk comes
// from a pool that is made once: a letter of 20 MiB is a list of slices.
//
// Every recipient address holds the letter's marker (package ledger), and so
// does a header field wherever the shape has room for one.
package letter
