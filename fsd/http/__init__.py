"""HTTP/1.1 on trio for the few pages and calls that others speak it for: health, metrics, Docker's volume plugin."""
