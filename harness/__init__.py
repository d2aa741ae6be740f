"""What makes a run fast and safe. Nobody needs it to understand the network."""

from harness import bars as bars  # before another module imports tqdm
