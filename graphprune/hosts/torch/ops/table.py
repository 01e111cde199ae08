"""The table of ATen operators: what each one couples.

Supporting an operator is one line here (its row, see ``rows``, ``sums``, ``views`` and ``lookups``) and one in
``tests/aten_cases.py`` (docs/adding.md, An operator). The operators are those of the functional program that torch
gives with ``run_decompositions({})``. What is missing is a barrier. ``aten.squeeze.default`` is missing on purpose: an
axis that is cut down to one would vanish; ``graphprune.hosts.torch.trace`` names the axes instead.
"""

from __future__ import annotations

from graphprune.hosts.torch.ops import lookups, rows, sums, views
from graphprune.hosts.torch.ops.rows import ORDER, POOLED
from graphprune.rules.call import EXACT, Op, Row

_UNARY = """
    abs acos acosh angle asin asinh atan atanh ceil celu conj conj_physical cos cosh deg2rad digamma elu erf erfc
    erfinv exp exp2 expm1 floor frac gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu
    lgamma log log10 log1p log2 log_sigmoid logical_not mish nan_to_num rad2deg real imag reciprocal relu
    relu6 round rsqrt selu sgn sign signbit silu sin sinc sinh softplus softshrink special_erf special_expit
    special_log1p tan tanh threshold trunc fix bitwise_not logit isneginf isposinf to_dense
    log_sigmoid_forward clamp_max zeros_like ones_like full_like empty_like fill.Scalar
    special_ndtr relu_ silu_ _conj round.decimals atan2
""".split()  # noqa: SIM905  (read as a table)

_COPIES = """
    clone contiguous detach detach_copy lift_fresh_copy alias alias_copy positive to.dtype to.device to.dtype_layout
    _to_copy resolve_conj resolve_neg
""".split()  # noqa: SIM905

_BINARY = """
    add.Scalar sub.Scalar div.Tensor_mode div.Scalar_mode
    rsub.Scalar pow.Scalar pow.Tensor_Tensor minimum min.other
    eq.Scalar ne.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar lt.Tensor lt.Scalar
    le.Tensor le.Scalar logical_and logical_or logical_xor bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor
    bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar __and__.Tensor __and__.Scalar __or__.Tensor __or__.Scalar
    __xor__.Tensor fmod.Tensor fmod.Scalar remainder.Tensor remainder.Scalar floor_divide floor_divide.Scalar
    xlogy.Tensor xlogy.Scalar_Self logaddexp hypot polar complex copysign.Tensor copysign.Scalar
    fmax fmin heaviside ldexp.Tensor special_xlog1py bitwise_left_shift.Tensor bitwise_right_shift.Tensor
    bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar __lshift__.Scalar __rshift__.Scalar isclose
    where.self where.ScalarOther where.ScalarSelf where.Scalar lerp.Tensor lerp.Scalar addcmul addcdiv
    clamp_max.Tensor masked_fill.Scalar masked_fill.Tensor copy float_power.Tensor_Scalar
    nextafter fill.Tensor greater.Tensor less.Tensor
""".split()  # noqa: SIM905

_ELSEWHERE = "the code holds these values outside of its module, and nothing says what they were made of"
_RANGES = "a range or a pattern of indices is made along this axis"


def _named(names: list[str], row: Row | Op) -> dict[str, Row | Op]:
    return {f"aten.{name}" if "." in name else f"aten.{name}.default": row for name in names}


ROWS: dict[str, Row | Op] = {
    # weighted sums
    "aten.linear.default": sums.linear,
    "aten.matmul.default": sums.matmul,
    "aten.mm.default": sums.matmul,
    "aten.bmm.default": sums.matmul,
    "aten.mv.default": sums.matmul,
    "aten.dot.default": sums.matmul,
    "aten.addmm.default": sums.addmm,
    "aten.addmv.default": sums.addmm,
    "aten.baddbmm.default": sums.addmm,
    "aten.outer.default": sums.outer,
    "aten.bilinear.default": sums.bilinear,
    "aten.conv1d.default": sums.conv,
    "aten.conv2d.default": sums.conv,
    "aten.conv3d.default": sums.conv,
    "aten.conv1d.padding": sums.conv,
    "aten.conv2d.padding": sums.conv,
    "aten.conv3d.padding": sums.conv,
    "aten.conv_transpose1d.default": sums.conv,
    "aten.conv_transpose2d.input": sums.conv,
    "aten.conv_transpose3d.input": sums.conv,
    "aten.convolution.default": sums.conv,
    "aten.scaled_dot_product_attention.default": sums.sdpa,
    "aten.einsum.default": sums.einsum,
    "transformers.grouped_mm_fallback.default": Op(sums.grouped_mm, masked="grouped_mm"),
    "aten._grouped_mm.default": Op(sums.grouped_mm, masked="grouped_mm"),
    "aten.cdist.default": sums.cdist,
    "aten._cdist_forward.default": sums.cdist,
    "aten.cosine_similarity.default": Op(sums.cosine_similarity, masked=EXACT),
    "aten.grid_sampler.default": sums.grid_sampler,
    "aten.grid_sampler_2d.default": sums.grid_sampler,
    "aten.grid_sampler_3d.default": sums.grid_sampler,
    "aten._weight_norm.default": Op(sums.weight_norm, masked=EXACT),
    "aten.lstm.input": sums.lstm,
    "aten.gru.input": sums.lstm,
    "aten.rnn_tanh.input": sums.lstm,
    "aten.rnn_relu.input": sums.lstm,
    # normalisations
    "aten._native_batch_norm_legit_no_training.default": Op(rows.batch_norm, role="batch-norm"),
    "aten._native_batch_norm_legit.no_stats": Op(rows.batch_norm, role="batch-norm", masked="batch_norm"),
    "aten._native_batch_norm_legit_functional.default": Op(rows.batch_norm_updating, role="batch-norm"),
    "aten.batch_norm.default": Op(rows.batch_norm, role="batch-norm"),
    "aten.layer_norm.default": Op(rows.layer_norm, masked="layer_norm"),
    "aten.native_layer_norm.default": Op(rows.layer_norm, masked="native_layer_norm"),
    "aten.rms_norm.default": Op(rows.layer_norm, masked="rms_norm"),
    "aten._fused_rms_norm.default": Op(rows.layer_norm, masked="fused_rms_norm"),
    "aten.group_norm.default": Op(rows.group_norm, masked="group_norm"),
    "aten.native_group_norm.default": Op(rows.native_group_norm, masked="native_group_norm"),
    "aten.instance_norm.default": Op(rows.instance_norm, masked="instance_norm"),
    # element by element
    **_named(_UNARY, rows.elementwise),
    **_named(_BINARY, rows.elementwise),
    **_named(["add.Tensor"], Op(rows.elementwise, sums=(0, 1))),
    **_named(["sub.Tensor", "subtract.Tensor"], Op(rows.elementwise, sums=(0,))),
    **_named(["rsub.Tensor"], Op(rows.elementwise, sums=(1,))),
    **_named(
        ["mul.Tensor", "mul.Scalar", "multiply.Tensor", "neg", "negative"], Op(rows.elementwise, multiple="product")
    ),
    **_named(
        ["div.Tensor", "div.Scalar", "divide.Tensor", "true_divide.Tensor"], Op(rows.elementwise, multiple="quotient")
    ),
    **_named(["square", "pow.Tensor_Scalar"], Op(rows.elementwise, role="square")),
    **_named(["sqrt", "clamp", "clamp_min", "clip", "maximum", "max.other"], Op(rows.elementwise, role="bound")),
    **_named(["clamp.Tensor", "clamp_min.Tensor", "expand_as"], Op(rows.elementwise, role="bound")),
    **_named(["sigmoid"], Op(rows.elementwise, role="sigmoid")),
    **_named(_COPIES, Op(rows.copied, multiple="product", role="copy")),
    "aten.copy_.default": rows.elementwise,  # what a forward writes into a buffer
    "aten.lift.default": rows.whole(_ELSEWHERE),
    "aten.eq.Tensor": rows.compared,
    "aten.ne.Tensor": rows.compared,
    "aten.type_as.default": rows.first_only,
    "aten.to.other": rows.first_only,
    "aten.dropout.default": Op(rows.dropout, multiple="product", role="dropout"),
    "aten.native_dropout.default": Op(rows.dropout, role="dropout"),
    "aten.feature_dropout.default": Op(rows.dropout, multiple="product", role="dropout"),
    "aten.prelu.default": rows.prelu,
    "aten._prelu_kernel.default": rows.elementwise,
    "aten.glu.default": rows.glu,
    # along some axes
    "aten.softmax.int": Op(rows.choice, role="softmax", masked="choice"),
    "aten._softmax.default": Op(rows.choice, role="softmax", masked="choice"),
    "aten._safe_softmax.default": Op(rows.choice, role="softmax", masked="choice"),
    "aten.log_softmax.int": Op(rows.choice, role="log-softmax", masked="choice"),
    "aten._log_softmax.default": Op(rows.choice, role="log-softmax", masked="choice"),
    "aten.cumsum.default": Op(rows.cumsum, masked=EXACT),
    "aten.cumprod.default": rows.along(ORDER),
    "aten.cummax.default": rows.along(ORDER),
    "aten.cummin.default": rows.along(ORDER),
    "aten.logcumsumexp.default": rows.along(ORDER),
    "aten.sort.default": rows.sort,
    "aten.sort.stable": rows.sort,
    "aten.argsort.default": rows.sort,
    "aten.argsort.stable": rows.sort,
    "aten.topk.default": Op(rows.topk, masked="topk"),
    "aten.diff.default": rows.along(ORDER),
    "aten.cross.default": rows.cross,
    "aten.linalg_cross.default": rows.cross,
    "aten.flip.default": rows.along("a flip reverses this axis", "dims"),
    "aten.roll.default": rows.along("a roll moves values along this axis", "dims"),
    "aten.rot90.default": rows.along("a rotation moves values along this axis", "dims"),
    "aten._fft_r2c.default": rows.along("a Fourier transform runs along this axis"),
    "aten._fft_c2r.default": rows.along("a Fourier transform runs along this axis"),
    "aten._fft_c2c.default": rows.along("a Fourier transform runs along this axis"),
    "aten.tril.default": rows.last(2, ORDER),
    "aten.triu.default": rows.last(2, ORDER),
    "aten.max_pool1d.default": rows.last(1, POOLED),
    "aten.max_pool2d.default": rows.last(2, POOLED),
    "aten.max_pool3d.default": rows.last(3, POOLED),
    "aten.max_pool2d_with_indices.default": rows.last(2, POOLED),
    "aten.max_pool3d_with_indices.default": rows.last(3, POOLED),
    "aten.avg_pool1d.default": Op(rows.last(1, POOLED), role="pool"),
    "aten.avg_pool2d.default": Op(rows.last(2, POOLED), role="pool"),
    "aten.avg_pool3d.default": Op(rows.last(3, POOLED), role="pool"),
    "aten.adaptive_avg_pool1d.default": Op(rows.last(1, POOLED), role="pool"),
    "aten.adaptive_avg_pool2d.default": Op(rows.last(2, POOLED), role="pool"),
    "aten.adaptive_avg_pool3d.default": Op(rows.last(3, POOLED), role="pool"),
    "aten._adaptive_avg_pool2d.default": Op(rows.last(2, POOLED), role="pool"),
    "aten._adaptive_avg_pool3d.default": Op(rows.last(3, POOLED), role="pool"),
    "aten.adaptive_max_pool1d.default": rows.last(1, POOLED),
    "aten.adaptive_max_pool2d.default": rows.last(2, POOLED),
    "aten.adaptive_max_pool3d.default": rows.last(3, POOLED),
    "aten.max_unpool2d.default": rows.unpool,
    "aten.max_unpool3d.default": rows.unpool,
    "aten.upsample_nearest1d.default": rows.resize(1),
    "aten.upsample_nearest1d.vec": rows.resize(1),
    "aten.upsample_nearest2d.default": rows.resize(2),
    "aten.upsample_nearest2d.vec": rows.resize(2),
    "aten.upsample_nearest3d.default": rows.resize(3),
    "aten.upsample_nearest3d.vec": rows.resize(3),
    "aten._upsample_nearest_exact1d.vec": rows.resize(1),
    "aten._upsample_nearest_exact2d.vec": rows.resize(2),
    "aten.upsample_linear1d.default": rows.resize(1),
    "aten.upsample_linear1d.vec": rows.resize(1),
    "aten.upsample_bilinear2d.default": rows.resize(2),
    "aten.upsample_bilinear2d.vec": rows.resize(2),
    "aten.upsample_bicubic2d.default": rows.resize(2),
    "aten.upsample_bicubic2d.vec": rows.resize(2),
    "aten.upsample_trilinear3d.vec": rows.resize(3),
    "aten._upsample_bilinear2d_aa.default": rows.resize(2),
    "aten._upsample_bilinear2d_aa.vec": rows.resize(2),
    "aten._upsample_bicubic2d_aa.default": rows.resize(2),
    "aten._upsample_bicubic2d_aa.vec": rows.resize(2),
    "aten.unfold.default": rows.unfold,
    "aten.diagonal.default": rows.diagonal,
    # reductions
    "aten.sum.default": Op(rows.reduce("sum"), role="sum"),
    "aten.sum.dim_IntList": Op(rows.reduce("sum"), role="sum"),
    "aten.nansum.default": rows.reduce("sum"),
    "aten.any.default": rows.reduce("sum"),
    "aten.any.dim": rows.reduce("sum"),
    "aten.any.dims": rows.reduce("sum"),
    "aten.count_nonzero.default": rows.reduce("sum"),
    "aten.count_nonzero.dim_IntList": rows.reduce("sum"),
    "aten.linalg_vector_norm.default": Op(rows.norm, role="norm"),
    "aten.norm.Scalar": Op(rows.norm, role="norm"),
    "aten.norm.ScalarOpt_dim": Op(rows.norm, role="norm"),
    "aten.mean.default": Op(rows.reduce("mean"), masked="mean"),
    "aten.mean.dim": Op(rows.reduce("mean"), masked="mean", role="pool"),
    "aten.var.default": Op(rows.reduce("mean"), masked="var"),
    "aten.var.dim": Op(rows.reduce("mean"), masked="var"),
    "aten.var.correction": Op(rows.reduce("mean"), masked="var"),
    "aten.std.default": Op(rows.reduce("mean"), masked="std"),
    "aten.std.dim": Op(rows.reduce("mean"), masked="std"),
    "aten.std.correction": Op(rows.reduce("mean"), masked="std"),
    "aten.var_mean.default": Op(rows.reduce("mean"), masked="var_mean"),
    "aten.var_mean.dim": Op(rows.reduce("mean"), masked="var_mean"),
    "aten.var_mean.correction": Op(rows.reduce("mean"), masked="var_mean"),
    "aten.std_mean.default": Op(rows.reduce("mean"), masked="std_mean"),
    "aten.std_mean.dim": Op(rows.reduce("mean"), masked="std_mean"),
    "aten.std_mean.correction": Op(rows.reduce("mean"), masked="std_mean"),
    "aten.all.default": rows.reduce("other"),
    "aten._is_all_true.default": rows.reduce("other"),
    "aten._is_any_true.default": rows.reduce("sum"),
    "aten.all.dim": rows.reduce("other"),
    "aten.all.dims": rows.reduce("other"),
    "aten.prod.default": rows.reduce("other"),
    "aten.prod.dim_int": rows.reduce("other"),
    "aten.max.default": Op(rows.reduce("extreme"), masked="choice"),
    "aten.max.dim": Op(rows.chosen(1, "extreme"), masked="choice"),
    "aten.min.default": Op(rows.reduce("extreme"), masked="choice_of_least"),
    "aten.min.dim": Op(rows.chosen(1, "extreme"), masked="choice_of_least"),
    "aten.amax.default": Op(rows.reduce("extreme"), masked="choice"),
    "aten.amin.default": Op(rows.reduce("extreme"), masked="choice_of_least"),
    "aten.aminmax.default": rows.reduce("other"),
    "aten.argmax.default": Op(rows.chosen(0), masked="choice"),
    "aten.argmin.default": Op(rows.chosen(0), masked="choice_of_least"),
    "aten.median.dim": rows.reduce("other"),
    "aten.logsumexp.default": Op(rows.reduce("choice"), masked="choice"),
    # views
    "aten.view.default": Op(views.reshape("size"), role="view"),
    "aten._unsafe_view.default": Op(views.reshape("size"), role="view"),
    "aten.reshape.default": Op(views.reshape("shape"), role="view"),
    "aten.flatten.using_ints": Op(views.reshape(), role="view"),
    "aten.unsqueeze.default": Op(views.reshape(), role="view"),
    "aten.squeeze.dim": Op(views.squeeze, role="view"),
    "aten.squeeze.dims": Op(views.squeeze, role="view"),
    "aten.unflatten.int": Op(views.unflatten, role="view"),
    "aten.permute.default": Op(views.permute, role="turn"),
    "aten.transpose.int": Op(views.transpose, role="turn"),
    "aten.swapaxes.default": Op(views.transpose, role="turn"),
    "aten.adjoint.default": Op(views.transpose, role="turn"),
    "aten.mT.default": Op(views.transpose, role="turn"),
    "aten.t.default": Op(views.reverse_axes, role="turn"),
    "aten.numpy_T.default": Op(views.reverse_axes, role="turn"),
    "aten.movedim.intlist": Op(views.movedim, role="turn"),
    "aten.movedim.int": Op(views.movedim, role="turn"),
    "aten.expand.default": Op(views.expand, role="bound"),
    "aten.broadcast_to.default": Op(views.expand, role="bound"),
    "aten.broadcast_tensors.default": rows.elementwise,
    "aten.repeat.default": views.repeat,
    "aten.tile.default": views.repeat,
    "aten.repeat_interleave.self_int": views.repeat_interleave,
    "aten.view_as_real.default": views.view_as_real,
    "aten.view_as_complex.default": views.view_as_complex,
    # parts and joins
    "aten.cat.default": Op(views.cat, role="join"),
    "aten.concat.default": Op(views.cat, role="join"),
    "aten.concatenate.default": Op(views.cat, role="join"),
    "aten.stack.default": views.stack,
    "aten.split_with_sizes.default": views.split_with_sizes,
    "aten.split.Tensor": views.split,
    "aten.unsafe_split.Tensor": views.split,
    "aten.chunk.default": views.chunk,
    "aten.unsafe_chunk.default": views.chunk,
    "aten.tensor_split.sections": views.chunk,
    "aten.unbind.int": views.unbind,
    "aten.select.int": views.select,
    "aten.slice.Tensor": views.slice_,
    "aten.narrow.default": views.narrow,
    "aten.slice_scatter.default": views.slice_scatter,
    "aten.select_scatter.default": views.select_scatter,
    "aten.pad.default": views.pad,
    "aten.constant_pad_nd.default": views.pad,
    "aten.reflection_pad1d.default": views.pad,
    "aten.reflection_pad2d.default": views.pad,
    "aten.reflection_pad3d.default": views.pad,
    "aten.replication_pad1d.default": views.pad,
    "aten.replication_pad2d.default": views.pad,
    "aten.replication_pad3d.default": views.pad,
    # look-ups
    "aten.embedding.default": lookups.embedding,
    "aten.embedding_bag.padding_idx": sums.embedding_bag,
    "aten.index_select.default": lookups.index_select,
    "aten.index.Tensor": lookups.index,
    "aten._unsafe_index.Tensor": lookups.index,
    "aten.index_put.default": lookups.index_put,
    "aten._unsafe_index_put.default": lookups.index_put,
    "aten.gather.default": lookups.gather,
    "aten.take_along_dim.default": lookups.take_along,
    "aten.one_hot.default": rows.one_hot,
    "aten.histc.default": rows.histc,
    "aten.scatter.src": lookups.scatter,
    "aten.scatter.value": lookups.scatter,
    "aten.scatter_add.default": lookups.scatter,
    "aten.scatter_reduce.two": lookups.scatter,
    "aten.index_add.default": lookups.index_add,
    "aten.index_copy.default": lookups.index_add,
    "aten.index_fill.int_Scalar": lookups.index_add,
    "aten.masked_scatter.default": lookups.masked_scatter,
    "aten.bucketize.Tensor": lookups.bucketize,
    # rearrangements of images
    "aten.pixel_shuffle.default": views.pixel_shuffle,
    "aten.pixel_unshuffle.default": views.pixel_unshuffle,
    "aten.channel_shuffle.default": views.channel_shuffle,
    "aten.native_channel_shuffle.default": views.channel_shuffle,
    "aten.im2col.default": views.im2col,
    "aten.col2im.default": views.col2im,
    # tensors made from nothing
    "aten.zeros.default": rows.create,
    "aten.ones.default": rows.create,
    "aten.full.default": rows.create,
    "aten.empty.memory_format": rows.create,
    "aten.empty_permuted.default": rows.create,
    "aten.new_zeros.default": rows.create,
    "aten.new_ones.default": rows.create,
    "aten.new_full.default": rows.create,
    "aten.new_empty.default": rows.create,
    "aten.scalar_tensor.default": rows.scalar,
    "aten.arange.default": rows.opaque(_RANGES),
    "aten.arange.start": rows.opaque(_RANGES),
    "aten.arange.start_step": rows.opaque(_RANGES),
    "aten.linspace.default": rows.opaque(_RANGES),
    "aten.logspace.default": rows.opaque(_RANGES),
    "aten.eye.default": rows.opaque(_RANGES),
    "aten.eye.m": rows.opaque(_RANGES),
    "aten.tril_indices.default": rows.opaque(_RANGES),
    "aten.triu_indices.default": rows.opaque(_RANGES),
    "aten.meshgrid.default": rows.meshgrid,
    "aten.meshgrid.indexing": rows.meshgrid,
}
