"""Training that makes a network harder to fool: one training loop, one file a method."""
