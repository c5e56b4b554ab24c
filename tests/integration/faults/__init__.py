"""Real faults under load, against processes in network namespaces: `python -m tests.integration.faults`."""
