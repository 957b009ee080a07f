"""Reads weights from a safetensors file: tensors and nothing else, by construction of the format."""

from __future__ import annotations

from torch import Tensor

from audit.errors import ModelError


def load(content: bytes, source: str) -> dict[str, Tensor]:
    """Return the tensors by name.

    Raises
    ------
    ModelError
        The file is truncated or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    from audit.model.state_dict import strip_prefixes

    try:
        return strip_prefixes(parse(content))
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ModelError(f"{source} is a truncated or damaged safetensors file ({error}): copy or save it again") from None
