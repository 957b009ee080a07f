"""Anomaly detectors: how unlike the reference data is an input? One file a detector, each a scikit-learn estimator."""
