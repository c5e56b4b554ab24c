"""The protocol: frames, the codec, and every message. Readable without either end; does no IO."""
