"""Loading data: one file a source; `Dataset` is what everything else works with."""
