"""POSIX and Linux semantics of a directory, by category: `python -m tests.conformance DIRECTORY`.

A case is a function registered under a category; it makes any number of checks, and goes on after one that fails. What
ext4 passes is what a user expects of any file system; the table of two directories beside each other says how far we are.
"""
