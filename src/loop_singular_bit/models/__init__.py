"""What a network is: specification and ordered steps; no bytes, no I/O."""
