"""What runs in a peer's own environment. Imports the standard library, the peer, and nothing else of this project."""
