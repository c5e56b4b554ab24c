"""The tree as a pure state machine: records, operations, and the one `apply` that knows what they do. No IO, no clock."""
