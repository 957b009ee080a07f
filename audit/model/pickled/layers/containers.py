"""Layers in a row. A list or dict of layers says nothing of how they are joined: it stands inside others only."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from audit.model.pickled.layers.schema import Schema, Unfit


def _sequential(_: dict[str, Any], children: dict[str, nn.Module]) -> nn.Module:
    return nn.Sequential(OrderedDict(children))


def _list(_: dict[str, Any], children: dict[str, nn.Module]) -> nn.Module:
    if list(children) != [str(index) for index in range(len(children))]:
        raise Unfit("is a list whose layers are not numbered")
    return nn.ModuleList(children.values())


SCHEMAS = (
    Schema(nn.Sequential, children=True, make=_sequential),
    Schema(nn.ModuleList, children=True, make=_list),
)

# Classes that hold layers, and whose users say in code how they are joined: that code is not in the file.
WITHOUT_FORWARD = frozenset(
    {
        "torch.nn.modules.container.ModuleDict",
        "torch.nn.modules.container.ModuleList",
        "torch.nn.modules.container.ParameterDict",
        "torch.nn.modules.container.ParameterList",
        "torch.nn.modules.module.Module",
    }
)

# What wraps a network for several devices: the network inside computes the same.
DATA_PARALLEL = "torch.nn.parallel.data_parallel.DataParallel"
