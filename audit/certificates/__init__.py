"""Certificates: bounds that no attack can break, from the network's own graph or from the smoothed network's votes."""
