"""What can be chosen about hardening: the section ``[hardening]`` of audit.toml and the options of ``audit harden``."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from audit.config import seconds
from audit.errors import closest

NORMS = ("linf", "l2")  # that training steps in


class HardeningOptions(BaseModel):
    """``[hardening]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    method: str = Field(default="trades", description="trades or pgd")
    norm: str = Field(default="linf", description="linf or l2")
    eps: float | None = Field(default=None, ge=0, description="radius in input units; fractions as '8/255'")
    epochs: int = Field(default=15, ge=1, le=100_000, description="passes over the training samples")
    max_time: float | None = Field(default=None, gt=0, description="stop after so long: '10m', '90s', or seconds")
    batch_size: int = Field(default=128, ge=1, description="samples a step of training")
    lr: float = Field(default=1e-3, gt=0, description="highest learning rate of AdamW: a tenth up, then down along a cosine")
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's weight decay")
    beta: float = Field(default=6.0, ge=0, description="trades: weight of robustness against clean accuracy")
    attack_steps: int = Field(default=10, ge=1, le=1000, description="gradient steps of the inner attack")
    step_size: float | None = Field(default=None, gt=0, description="length of a step as a share of the radius")
    warm_up: float = Field(default=0.3, ge=0, le=1, description="share of training over which the radius grows from 0")
    validation: float = Field(
        default=0.1, gt=0, lt=1, description="share of the reference part kept back, at most 1,000 samples"
    )
    validation_steps: int = Field(default=20, ge=1, le=1000, description="steps of the attack that early stopping looks at")
    patience: int = Field(default=10, ge=1, description="epochs at the full radius without a better one before it stops")
    from_scratch: bool = Field(default=False, description="begin with fresh weights rather than the given ones")
    freeze_batch_norm: bool = Field(default=False, description="keep the running statistics of batch normalisation as they are")

    @field_validator("norm")
    @classmethod
    def _known_norm(cls, value: str) -> str:
        if value not in NORMS:
            raise ValueError(f"no norm {value!r}; {closest(value, list(NORMS))}")
        return value

    @field_validator("eps", mode="before")
    @classmethod
    def _fraction(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return float(Fraction(value.replace(" ", "")))
        except (ValueError, ZeroDivisionError):
            raise ValueError("a radius is a number or a fraction, for instance 0.3 or 8/255") from None

    @field_validator("max_time", mode="before")
    @classmethod
    def _duration(cls, value: Any) -> Any:
        return seconds(value)
