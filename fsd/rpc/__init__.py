"""Requests and answers over frames: pipelined, both ways on one connection, cancellable, with back-pressure."""
