"""More than forty small networks built of what real classifiers are built of: each is saved in every format and read again.

`ARCHITECTURES` lists them; `made` builds one with seeded weights and running statistics that are not those of a fresh layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.roundtrip import images, plain, sequences


@dataclass(frozen=True)
class Architecture:
    """A network to save and read again.

    Attributes
    ----------
    build
        Makes it, untrained.
    shape
        Of one sample.
    output
        What it returns, for `audit.Model`.
    plain
        Made of torch.nn's own classes alone, so that its pickle needs no ``--arch``.
    dtype
        Of its parameters.
    """

    name: str
    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    output: str = "logits"
    plain: bool = False
    dtype: torch.dtype = torch.float32


def made(architecture: Architecture) -> nn.Module:
    """Return the network in evaluation mode, its random numbers all from one seed."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = architecture.build().to(architecture.dtype)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None:
                nn.init.normal_(module.running_mean, 0.0, 0.2)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
            if isinstance(module, nn.modules.batchnorm._NormBase | nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
                nn.init.normal_(module.weight, 1.0, 0.1)
                nn.init.normal_(module.bias, 0.0, 0.1)
    return network.eval()


def inputs(architecture: Architecture, n: int, seed: int = 7) -> Tensor:
    """Return `n` samples, standard normal."""
    return torch.randn(n, *architecture.shape, generator=torch.Generator().manual_seed(seed), dtype=architecture.dtype)


ARCHITECTURES: dict[str, Architecture] = {
    each.name: each
    for each in (
        Architecture("mlp_relu", plain.mlp_relu, (12,), plain=True),
        Architecture("mlp_tanh", plain.mlp_tanh, (12,), plain=True),
        Architecture("mlp_gelu_layer_norm", plain.mlp_gelu, (12,), plain=True),
        Architecture("mlp_selu_alpha_dropout", plain.mlp_selu, (12,), plain=True),
        Architecture("mlp_batch_norm_elu_softplus", plain.mlp_batch_norm, (12,), plain=True),
        Architecture("mlp_silu_mish", plain.mlp_silu_mish, (12,), plain=True),
        Architecture("mlp_softmax", plain.mlp_softmax, (12,), output="probabilities", plain=True),
        Architecture("mlp_log_softmax", plain.mlp_log_softmax, (12,), plain=True),
        Architecture("mlp_sigmoid", plain.mlp_sigmoid, (12,), output="binary_probability", plain=True),
        Architecture("mlp_regression", plain.mlp_regression, (12,), output="regression", plain=True),
        Architecture("mlp_float64", plain.mlp_tanh, (12,), plain=True, dtype=torch.float64),
        Architecture("lenet", plain.lenet, (1, 20, 20), plain=True),
        Architecture("vgg", plain.vgg, (3, 16, 16), plain=True),
        Architecture("all_convolutional", plain.all_convolutional, (3, 12, 12), plain=True),
        Architecture("mobilenet", plain.mobilenet, (3, 16, 16), plain=True),
        Architecture("dilated_asymmetric", plain.dilated, (3, 15, 13), plain=True),
        Architecture("transposed", plain.transposed, (2, 8, 8), plain=True),
        Architecture("convolution_1d", plain.convolution_1d, (3, 24), plain=True),
        Architecture("convolution_3d", plain.convolution_3d, (1, 6, 8, 8), plain=True),
        Architecture("group_norm", plain.group_norm, (3, 12, 12), plain=True),
        Architecture("instance_norm", plain.instance_norm, (3, 12, 12), plain=True),
        Architecture("upsample", plain.upsample, (2, 6, 6), plain=True),
        Architecture("pools", plain.pools, (2, 17, 17), plain=True),
        Architecture("prelu_leaky_padding", plain.prelu, (2, 10, 10), plain=True),
        Architecture("pixel_shuffle", plain.pixel_shuffle, (2, 6, 6), plain=True),
        Architecture("squeeze_excitation", images.SqueezeExcitation, (3, 10, 10)),
        Architecture("shuffle_net", images.ShuffleNet, (3, 10, 10)),
        Architecture("resnet18", images.resnet18, (3, 24, 24)),
        Architecture("densenet", images.DenseNet, (3, 12, 12)),
        Architecture("inception", images.Inception, (3, 12, 12)),
        Architecture("unet", images.UNet, (2, 12, 12)),
        Architecture("convnext", images.ConvNeXt, (3, 16, 16)),
        Architecture("normalised_inside", images.NormalisedInside, (3, 8, 8)),
        Architecture("functional", images.Functional, (1, 12, 12)),
        Architecture("shared_twice", images.SharedTwice, (12,)),
        Architecture("tied", images.Tied, (12,)),
        Architecture("lstm", sequences.TwoWayLSTM, (7, 5)),
        Architecture("gru", sequences.GRU, (7, 5)),
        Architecture("rnn", sequences.RNN, (7, 5)),
        Architecture("vit", sequences.ViT, (3, 8, 8)),
        Architecture("attention", sequences.Attention, (6, 8)),
        Architecture("einsum_attention", sequences.EinsumAttention, (6, 8)),
        Architecture("mixer", sequences.Mixer, (3, 8, 8)),
        Architecture("resnet18_float64", images.resnet18, (3, 16, 16), dtype=torch.float64),
    )
}
