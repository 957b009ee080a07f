"""Keeps torch from writing down every step of a recording: it does so wherever someone listens, as pytest does."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet_recordings() -> Iterator[None]:
    logger = logging.getLogger("torch.__trace")
    before, logger.disabled = logger.disabled, True
    yield
    logger.disabled = before
