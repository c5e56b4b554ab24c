"""Nodes, placement groups, epochs; weighted rendezvous hashing. Pure."""
