// Package gossip knows who is there. It is the only door to
// hashicorp/memberlist, and it reports and never decides: membership is changed
// by Raft, and whoever is dialled because of gossip still has to show the
// certificate of the name that was dialled.
//
// It promises that
//   - every member that can be reached, directly or through others, shows up in
//     Members within seconds, with what it says of itself (Meta);
//   - members that were seen once stay listed after they are gone, across
//     restarts too (Config.PeersFile), up to membersMax;
//   - two halves of a cluster that have forgotten each other find together
//     again: memberlist forgets the dead after half a minute, so the configured
//     addresses and the remembered ones are tried for ever;
//   - Changed tells, however fast things change, and costs the senders nothing.
//
// It assumes that whoever has the key is not hostile: memberlist proves no
// names and replays are possible. A holder of the key can make members appear
// and disappear here, and nothing more.
//
// It refuses packets that are not encrypted with the key or carry another
// cluster's name, members whose name or Meta is malformed, and more than
// membersMax of them.
package gossip
