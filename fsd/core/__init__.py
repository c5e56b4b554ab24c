"""What every part of fsd shares: identifiers, errors, units, checksums, configuration. Pure."""
