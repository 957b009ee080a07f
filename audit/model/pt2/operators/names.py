"""Names of the aten operators that are computed as torch itself computes them: each a plain function of its arguments.

An operator is left out where it draws random numbers, changes state, reads memory that nobody wrote, returns as many values as
its input says, or is not there to classify with. Those that need a check or another call stand in `functions`.
"""

from __future__ import annotations

PRODUCTS = """
linear.default addmm.default addmv.default addbmm.default mm.default bmm.default mv.default dot.default
vdot.default tensordot.default baddbmm.default
matmul.default bilinear.default outer.default
conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding
conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input
"""

NORMS = """
layer_norm.default native_layer_norm.default group_norm.default rms_norm.default
linalg_vector_norm.default norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype norm.ScalarOpt_dtype
"""

ACTIVATIONS = """
relu.default relu6.default leaky_relu.default elu.default selu.default celu.default gelu.default silu.default mish.default
hardtanh.default hardswish.default hardsigmoid.default softplus.default softshrink.default hardshrink.default threshold.default
tanh.default prelu.default _prelu_kernel.default log_sigmoid.default log_sigmoid_forward.default
log_softmax.int _log_softmax.default glu.default logit.default
"""

POOLS = """
max_pool1d.default max_pool2d.default max_pool3d.default max_pool1d_with_indices.default max_pool2d_with_indices.default
max_pool3d_with_indices.default avg_pool1d.default avg_pool2d.default avg_pool3d.default adaptive_avg_pool1d.default
adaptive_avg_pool2d.default adaptive_avg_pool3d.default _adaptive_avg_pool2d.default _adaptive_avg_pool3d.default
adaptive_max_pool1d.default adaptive_max_pool2d.default adaptive_max_pool3d.default
"""

SHAPES = """
flatten.using_ints unflatten.int reshape.default unsqueeze.default squeeze.dim squeeze.dims
permute.default transpose.int t.default numpy_T.default mT.default swapaxes.default movedim.int movedim.intlist
expand.default expand_as.default repeat.default tile.default cat.default concat.default stack.default hstack.default
vstack.default slice.Tensor select.int narrow.default index.Tensor index_select.default gather.default
flip.default roll.default reshape_as.default view_as.default diagonal.default unfold.default tril.default triu.default
pad.default constant_pad_nd.default reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default
replication_pad1d.default replication_pad2d.default replication_pad3d.default
pixel_shuffle.default pixel_unshuffle.default channel_shuffle.default
upsample_nearest1d.default upsample_nearest1d.vec upsample_nearest2d.default upsample_nearest2d.vec upsample_nearest3d.default
upsample_nearest3d.vec _upsample_nearest_exact1d.vec _upsample_nearest_exact2d.default _upsample_nearest_exact2d.vec
upsample_linear1d.default upsample_linear1d.vec upsample_bilinear2d.default upsample_bilinear2d.vec
upsample_trilinear3d.default upsample_trilinear3d.vec upsample_bicubic2d.default upsample_bicubic2d.vec
slice_scatter.default select_scatter.default index_put.default scatter.src scatter.value scatter_add.default
embedding.default
"""

ARITHMETIC = """
add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar
true_divide.Tensor pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar neg.default abs.default
exp.default exp2.default expm1.default log.default log1p.default log2.default log10.default sqrt.default rsqrt.default
reciprocal.default square.default clamp.default clamp.Tensor
clip.default clip.Tensor clamp_min.default clamp_min.Tensor clamp_max.default
clamp_max.Tensor maximum.default minimum.default fmax.default fmin.default erf.default erfc.default sin.default cos.default
tan.default asin.default acos.default atan.default atan2.default sinh.default cosh.default floor.default ceil.default
round.default trunc.default frac.default sign.default addcmul.default addcdiv.default lerp.Scalar lerp.Tensor
logaddexp.default hypot.default where.self where.ScalarSelf where.ScalarOther where.Scalar masked_fill.Scalar
masked_fill.Tensor nan_to_num.default isnan.default isinf.default isfinite.default
eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar
logical_and.default logical_or.default logical_xor.default logical_not.default
bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor bitwise_not.default __and__.Tensor __or__.Tensor
"""

REDUCTIONS = """
mean.default mean.dim sum.default sum.dim_IntList amax.default amin.default max.default max.dim max.other min.default
min.dim min.other argmax.default argmin.default var.correction var.default var.dim var_mean.correction std.correction
std.default std.dim prod.default prod.dim_int logsumexp.default any.default any.dim any.dims all.default all.dim
cumsum.default cumprod.default topk.default sort.default argsort.default cosine_similarity.default pairwise_distance.default
"""

CELLS = """
lstm_cell.default gru_cell.default rnn_tanh_cell.default rnn_relu_cell.default
"""

COPIES = """
clone.default contiguous.default detach.default alias.default lift_fresh_copy.default
"""

# They write into their first argument, and are called so where that is a value of the network's own.
IN_PLACE = """
relu_.default hardtanh_.default leaky_relu_.default elu_.default selu_.default celu_.default silu_.default mish_.default
hardswish_.default hardsigmoid_.default tanh_.default threshold_.default gelu_.default relu6_.default
add_.Tensor add_.Scalar sub_.Tensor sub_.Scalar mul_.Tensor mul_.Scalar div_.Tensor div_.Scalar pow_.Scalar neg_.default
abs_.default exp_.default log_.default sqrt_.default rsqrt_.default reciprocal_.default square_.default clamp_.default
clamp_min_.default clamp_max_.default masked_fill_.Scalar masked_fill_.Tensor zero_.default fill_.Scalar fill_.Tensor
copy_.default index_put_.default clip_.default detach_.default addcmul_.default addcdiv_.default
"""

# They make values from nothing, on a device that the file names.
MAKING = """
full.default zeros.default ones.default arange.default arange.start arange.start_step scalar_tensor.default linspace.default
eye.default eye.m
"""

# They make values where the tensor is that they are given.
LIKE = """
full_like.default zeros_like.default ones_like.default new_zeros.default new_ones.default new_full.default
"""

AS_THEY_ARE = tuple(
    f"{PRODUCTS} {NORMS} {ACTIVATIONS} {POOLS} {SHAPES} {ARITHMETIC} {REDUCTIONS} {CELLS} {COPIES} {IN_PLACE}".split()
)

# Checks that torch writes beside what is computed: of shapes, types and free sizes. They compute nothing.
CHECKS = frozenset(
    f"torch.ops.aten.{name}"
    for name in (
        "_assert_scalar.default",
        "_assert_tensor_metadata.default",
        "_assert_async.default",
        "_assert_async.msg",
        "sym_constrain_range.default",
        "sym_constrain_range_for_size.default",
    )
)

# What a step is called where torch's name of the operator is another.
KINDS = {
    "_native_batch_norm_legit_no_training": "batch_norm",
    "_native_batch_norm_legit": "batch_norm",
    "native_batch_norm": "batch_norm",
    "native_layer_norm": "layer_norm",
    "native_group_norm": "group_norm",
    "max_pool1d_with_indices": "max_pool1d",
    "max_pool2d_with_indices": "max_pool2d",
    "max_pool3d_with_indices": "max_pool3d",
    "addmm": "linear",
    "_scaled_dot_product_flash_attention_for_cpu": "scaled_dot_product_attention",
    "_scaled_dot_product_flash_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_efficient_attention": "scaled_dot_product_attention",
    "_scaled_dot_product_cudnn_attention": "scaled_dot_product_attention",
    "_prelu_kernel": "prelu",
    "_unsafe_view": "view",
}
