"""The checks: one file each, and beside a long one its parts as ``<check>_<part>.py``.

A new built-in check is added to `BUILT_IN`; third parties use the entry-point group.
"""

BUILT_IN = ("performance", "robustness", "corruption", "anomaly", "explanation", "fairness")
