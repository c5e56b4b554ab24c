"""The whole file system in async Python, without FUSE: sessions, leases, cached tree, write-back, read-ahead."""
