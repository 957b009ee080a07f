"""TensorProto to torch.Tensor: lengths are held against the bytes that are there before anything is allocated."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from audit.model.onnx.beside import Part, part_of
from audit.model.onnx.messages import TensorProto
from audit.model.onnx.wire import Malformed, Numbers

# By ONNX's number: the type in the file, torch's, and the field that holds the values where raw_data does not.
_TYPES: dict[int, tuple[str, torch.dtype, str]] = {
    1: ("<f4", torch.float32, "float_data"),
    2: ("u1", torch.uint8, "int32_data"),
    3: ("i1", torch.int8, "int32_data"),
    4: ("<u2", torch.int64, "int32_data"),
    5: ("<i2", torch.int16, "int32_data"),
    6: ("<i4", torch.int32, "int32_data"),
    7: ("<i8", torch.int64, "int64_data"),
    9: ("u1", torch.bool, "int32_data"),
    10: ("<f2", torch.float16, "int32_data"),
    11: ("<f8", torch.float64, "double_data"),
    12: ("<u4", torch.int64, "uint64_data"),
    13: ("<u8", torch.int64, "uint64_data"),
    16: ("<u2", torch.bfloat16, "int32_data"),
}
FLOATS = {1: torch.float32, 10: torch.float16, 11: torch.float64, 16: torch.bfloat16}
_NAMES = {
    8: "string", 14: "complex64", 15: "complex128", 17: "float8e4m3fn", 18: "float8e4m3fnuz", 19: "float8e5m2",
    20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1", 24: "float8e8m0", 25: "uint2", 26: "int2",
    27: "float6e2m3", 28: "float6e3m2",
}  # fmt: skip
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
MOST_DIMS = 16
LONGEST = 2**31
EXTERNAL = 1


def type_name(number: int) -> str:
    """Return the name of ONNX's type: ``float32``, ``uint4``, ``type 99``."""
    if number in _TYPES:
        kind, dtype, _ = _TYPES[number]
        unsigned = {"<u2": "uint16", "<u4": "uint32", "<u8": "uint64"}.get(kind) if dtype == torch.int64 else None
        return unsigned or str(dtype).removeprefix("torch.")
    return _NAMES.get(number, f"type {number}")


def dims_of(tensor: TensorProto) -> tuple[int, ...]:
    """Return the lengths.

    Raises
    ------
    Malformed
        A length is negative or beyond all bounds, or there are too many.
    """
    dims = tuple(tensor.dims.list())
    if len(dims) > MOST_DIMS:
        raise Malformed(f"{_called(tensor)} has {len(dims)} dimensions; at most {MOST_DIMS} are read")
    if any(not 0 <= dim < LONGEST for dim in dims):
        raise Malformed(f"{_called(tensor)} has the lengths {str(dims)[:100]}")
    return dims


def read_tensor(tensor: TensorProto, beside: Mapping[str, bytes]) -> Tensor:
    """Return the values as a tensor of its own memory.

    Parameters
    ----------
    beside
        Content of the files beside the model file, by the name that it calls them.

    Raises
    ------
    Malformed
        The type is not read, or the bytes that are there are not those that the lengths ask for.
    """
    if tensor.data_type not in _TYPES:
        raise Malformed(f"{_called(tensor)} is of type {type_name(tensor.data_type)}, which audit does not read")
    kind, dtype, field = _TYPES[tensor.data_type]
    dims = dims_of(tensor)
    count = math.prod(dims)
    typed = [name for name in _FIELDS if getattr(tensor, name)]
    external = tensor.data_location == EXTERNAL
    if external or tensor.raw_data is not None:
        if typed or (external and tensor.raw_data is not None):
            raise Malformed(f"{_called(tensor)} holds its values twice, so that readers would see different content")
        size = count * np.dtype(kind).itemsize
        raw = part_of(Part.of(tensor), size, beside) if external else tensor.raw_data
        if raw is None or len(raw) != size:
            raise Malformed(f"{_called(tensor)} of lengths {dims} needs {size:,} bytes, but {len(raw or b''):,} are there")
        values: NDArray[np.generic] = np.frombuffer(raw, kind)
    elif [name for name in typed if name != field]:
        raise Malformed(f"{_called(tensor)} of type {type_name(tensor.data_type)} holds its values in {typed[0]}")
    else:
        values = _typed(tensor, getattr(tensor, field), kind, count)
    return _to_torch(tensor, values, dtype).reshape(dims)


def _typed(tensor: TensorProto, numbers: Numbers, kind: str, count: int) -> NDArray[np.generic]:
    values = numbers.array()
    if len(values) != count:
        raise Malformed(f"{_called(tensor)} needs {count:,} values, but {len(values):,} are there")
    if numbers.kind != "int":
        return values
    # Half-precision floats stand as their bits, in as many numbers.
    plain = np.dtype("<u2") if kind == "<f2" else np.dtype(kind)
    if plain.itemsize < 8:
        limits = np.iinfo(plain)
        if bool(((values < limits.min) | (values > limits.max)).any()):
            raise Malformed(f"{_called(tensor)} holds a number that is none of type {type_name(tensor.data_type)}")
    return values.astype(plain).view(kind)


def _to_torch(tensor: TensorProto, values: NDArray[np.generic], dtype: torch.dtype) -> Tensor:
    if dtype == torch.bool:
        if bool((values > 1).any()):  # type: ignore[operator]
            raise Malformed(f"{_called(tensor)} holds a truth value that is neither 0 nor 1")
        return torch.from_numpy(values.astype(np.bool_))
    if dtype == torch.bfloat16:
        return torch.from_numpy(values.astype(np.int16)).view(torch.bfloat16)
    if values.dtype == np.uint64 and bool((values >= np.uint64(2**63)).any()):
        raise Malformed(f"{_called(tensor)} holds a number above 2**63")
    native = values.astype(np.int64) if values.dtype.kind == "u" and dtype == torch.int64 else values
    return torch.from_numpy(native.astype(native.dtype.newbyteorder("="), copy=True))


def _called(tensor: TensorProto) -> str:
    return f"the tensor {tensor.name[:100]!r}" if tensor.name else "a tensor without a name"
