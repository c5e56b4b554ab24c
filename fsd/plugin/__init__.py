"""Docker's volume plugin: a Docker volume is an fsd volume, mounted on this host while a container here uses it.

    dockerd --HTTP over a unix socket--> docker.py (paths, JSON, errors) --> driver.py (what to do)
                                                                               |        |        |
                                            volumes.py (the metadata server)---+    mounts.py   uses.py (who asked for it)

Nothing that matters is kept here. Which volumes there are is in the cluster, so a volume made on one host is there on all;
what is mounted is in mountinfo; for whom is in a file under /run, and if that is lost, in the containers' mount namespaces.

One mount for each volume, not one for all: a volume has its own quota and replicas, deleting one is refused by the cluster
while any host has it mounted, and a daemon that dies or is upgraded concerns one volume. What that costs was measured, see
docs/containers.md.
"""
