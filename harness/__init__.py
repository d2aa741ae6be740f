"""What makes a run fast and safe. Nobody needs it to understand the network."""
