"""Every message between the parts, by the pair that speaks it. They carry records of fsd.namespace and fsd.cluster.

Numbers: 1.. handshake, 100.. records, 200.. client and metadata, 300.. chunks, 400.. nodes and administration.
"""
