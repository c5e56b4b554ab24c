"""The metadata server: the tree, sessions and leases, and the cluster map. It never sees a chunk's bytes."""
