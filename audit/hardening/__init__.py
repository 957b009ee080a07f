"""Hardening: training that makes a network more robust, one file a method, on one training loop."""

from audit.hardening.base import METHODS, check_task, harden, method_named
from audit.hardening.history import Epoch, History
from audit.hardening.method import Ascent, Method
from audit.hardening.options import HardeningOptions
from audit.hardening.validation import robust_accuracy, training_data

__all__ = [
    "METHODS",
    "Ascent",
    "Epoch",
    "HardeningOptions",
    "History",
    "Method",
    "check_task",
    "harden",
    "method_named",
    "robust_accuracy",
    "training_data",
]
