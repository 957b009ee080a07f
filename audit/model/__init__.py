"""Loading and wrapping networks: one file a format; `Model` is what everything else works with."""
