"""Owns bytes: placement groups, chunks, orders and epochs; knows no names."""
