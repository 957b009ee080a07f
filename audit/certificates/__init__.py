"""Certificates: bounds that no attack can break, from the network's own graph or from the smoothed network's votes."""

from audit.certificates.bounds import Bounds
from audit.certificates.certify import Certificate, bounds_of, certify
from audit.certificates.network import Network, NoBound
from audit.certificates.smoothing import Smoothed, smooth

__all__ = ["Bounds", "Certificate", "Network", "NoBound", "Smoothed", "bounds_of", "certify", "smooth"]
