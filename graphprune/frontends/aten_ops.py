"""The table of ATen operators: what each one couples.

Supporting an operator is one line here (its row, see ``aten_rows`` and ``aten_views``) and one line in
``tests/test_aten_ops.py``. The operators are those of the functional program that torch gives with
``run_decompositions({})``. What is missing is a barrier. ``aten.squeeze.default`` is missing on purpose: an axis that
is cut down to one would vanish; ``graphprune.hosts.torch_trace`` names the axes instead.
"""

from __future__ import annotations

from graphprune.frontends import aten_rows as rows
from graphprune.frontends import aten_views as views
from graphprune.frontends.aten_rows import ORDER, POOLED
from graphprune.rules.call import Row

_UNARY = """
    abs acos acosh angle asin asinh atan atanh ceil celu conj conj_physical cos cosh deg2rad digamma elu erf erfc
    erfinv exp exp2 expm1 floor frac gelu hardshrink hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu
    lgamma log log10 log1p log2 log_sigmoid logical_not mish neg negative nan_to_num rad2deg real imag reciprocal relu
    relu6 round rsqrt selu sgn sigmoid sign signbit silu sin sinc sinh softplus softshrink special_erf special_expit
    special_log1p sqrt square tan tanh threshold trunc fix bitwise_not logit isneginf isposinf to_dense
    log_sigmoid_forward clamp clamp_min clamp_max clip zeros_like ones_like full_like empty_like fill.Scalar
    special_ndtr relu_ silu_ _conj round.decimals atan2
""".split()  # noqa: SIM905  (read as a table)

_COPIES = """
    clone contiguous detach detach_copy lift_fresh_copy alias alias_copy positive to.dtype to.device to.dtype_layout
    _to_copy resolve_conj resolve_neg
""".split()  # noqa: SIM905

_BINARY = """
    add.Tensor add.Scalar sub.Tensor sub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar div.Tensor_mode
    div.Scalar_mode rsub.Scalar rsub.Tensor pow.Tensor_Scalar pow.Scalar pow.Tensor_Tensor maximum minimum max.other
    min.other eq.Scalar ne.Scalar gt.Tensor gt.Scalar ge.Tensor ge.Scalar lt.Tensor lt.Scalar
    le.Tensor le.Scalar logical_and logical_or logical_xor bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor
    bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar __and__.Tensor __and__.Scalar __or__.Tensor __or__.Scalar
    __xor__.Tensor fmod.Tensor fmod.Scalar remainder.Tensor remainder.Scalar floor_divide floor_divide.Scalar
    true_divide.Tensor xlogy.Tensor xlogy.Scalar_Self logaddexp hypot polar complex copysign.Tensor copysign.Scalar
    fmax fmin heaviside ldexp.Tensor special_xlog1py bitwise_left_shift.Tensor bitwise_right_shift.Tensor
    bitwise_left_shift.Tensor_Scalar bitwise_right_shift.Tensor_Scalar __lshift__.Scalar __rshift__.Scalar isclose
    where.self where.ScalarOther where.ScalarSelf where.Scalar lerp.Tensor lerp.Scalar addcmul addcdiv clamp.Tensor
    clamp_min.Tensor clamp_max.Tensor masked_fill.Scalar masked_fill.Tensor expand_as copy float_power.Tensor_Scalar
    nextafter fill.Tensor multiply.Tensor divide.Tensor subtract.Tensor greater.Tensor less.Tensor
""".split()  # noqa: SIM905

_RANGES = "a range or a pattern of indices is made along this axis"


def _named(names: list[str], row: Row) -> dict[str, Row]:
    return {f"aten.{name}" if "." in name else f"aten.{name}.default": row for name in names}


ROWS: dict[str, Row] = {
    # weighted sums
    "aten.linear.default": rows.linear,
    "aten.matmul.default": rows.matmul,
    "aten.mm.default": rows.matmul,
    "aten.bmm.default": rows.matmul,
    "aten.mv.default": rows.matmul,
    "aten.dot.default": rows.matmul,
    "aten.addmm.default": rows.addmm,
    "aten.addmv.default": rows.addmm,
    "aten.baddbmm.default": rows.addmm,
    "aten.outer.default": rows.outer,
    "aten.bilinear.default": rows.bilinear,
    "aten.conv1d.default": rows.conv,
    "aten.conv2d.default": rows.conv,
    "aten.conv3d.default": rows.conv,
    "aten.conv1d.padding": rows.conv,
    "aten.conv2d.padding": rows.conv,
    "aten.conv3d.padding": rows.conv,
    "aten.conv_transpose1d.default": rows.conv,
    "aten.conv_transpose2d.input": rows.conv,
    "aten.conv_transpose3d.input": rows.conv,
    "aten.convolution.default": rows.conv,
    "aten.scaled_dot_product_attention.default": rows.sdpa,
    "aten.einsum.default": rows.einsum,
    "transformers.grouped_mm_fallback.default": rows.grouped_mm,
    "aten._grouped_mm.default": rows.grouped_mm,
    "aten.cdist.default": rows.cdist,
    "aten._cdist_forward.default": rows.cdist,
    "aten.cosine_similarity.default": rows.cosine_similarity,
    "aten.grid_sampler.default": rows.grid_sampler,
    "aten.grid_sampler_2d.default": rows.grid_sampler,
    "aten.grid_sampler_3d.default": rows.grid_sampler,
    "aten._weight_norm.default": rows.weight_norm,
    "aten.lstm.input": rows.lstm,
    "aten.gru.input": rows.lstm,
    "aten.rnn_tanh.input": rows.lstm,
    "aten.rnn_relu.input": rows.lstm,
    # normalisations
    "aten._native_batch_norm_legit_no_training.default": rows.batch_norm,
    "aten._native_batch_norm_legit.no_stats": rows.batch_norm,
    "aten._native_batch_norm_legit_functional.default": rows.batch_norm_updating,
    "aten.batch_norm.default": rows.batch_norm,
    "aten.layer_norm.default": rows.layer_norm,
    "aten.native_layer_norm.default": rows.layer_norm,
    "aten.rms_norm.default": rows.layer_norm,
    "aten._fused_rms_norm.default": rows.layer_norm,
    "aten.group_norm.default": rows.group_norm,
    "aten.native_group_norm.default": rows.native_group_norm,
    "aten.instance_norm.default": rows.instance_norm,
    # element by element
    **_named(_UNARY, rows.elementwise),
    **_named(_BINARY, rows.elementwise),
    **_named(_COPIES, rows.copied),
    "aten.copy_.default": rows.elementwise,  # what a forward writes into a buffer
    "aten.eq.Tensor": rows.compared,
    "aten.ne.Tensor": rows.compared,
    "aten.type_as.default": rows.first_only,
    "aten.to.other": rows.first_only,
    "aten.dropout.default": rows.dropout,
    "aten.native_dropout.default": rows.dropout,
    "aten.feature_dropout.default": rows.dropout,
    "aten.prelu.default": rows.prelu,
    "aten._prelu_kernel.default": rows.elementwise,
    "aten.glu.default": rows.glu,
    # along some axes
    "aten.softmax.int": rows.choice,
    "aten._softmax.default": rows.choice,
    "aten._safe_softmax.default": rows.choice,
    "aten.log_softmax.int": rows.choice,
    "aten._log_softmax.default": rows.choice,
    "aten.cumsum.default": rows.cumsum,
    "aten.cumprod.default": rows.along(ORDER),
    "aten.cummax.default": rows.along(ORDER),
    "aten.cummin.default": rows.along(ORDER),
    "aten.logcumsumexp.default": rows.along(ORDER),
    "aten.sort.default": rows.sort,
    "aten.sort.stable": rows.sort,
    "aten.argsort.default": rows.sort,
    "aten.argsort.stable": rows.sort,
    "aten.topk.default": rows.topk,
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
    "aten.avg_pool1d.default": rows.last(1, POOLED),
    "aten.avg_pool2d.default": rows.last(2, POOLED),
    "aten.avg_pool3d.default": rows.last(3, POOLED),
    "aten.adaptive_avg_pool1d.default": rows.last(1, POOLED),
    "aten.adaptive_avg_pool2d.default": rows.last(2, POOLED),
    "aten.adaptive_avg_pool3d.default": rows.last(3, POOLED),
    "aten._adaptive_avg_pool2d.default": rows.last(2, POOLED),
    "aten._adaptive_avg_pool3d.default": rows.last(3, POOLED),
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
    "aten.sum.default": rows.reduce("sum"),
    "aten.sum.dim_IntList": rows.reduce("sum"),
    "aten.nansum.default": rows.reduce("sum"),
    "aten.any.default": rows.reduce("sum"),
    "aten.any.dim": rows.reduce("sum"),
    "aten.any.dims": rows.reduce("sum"),
    "aten.count_nonzero.default": rows.reduce("sum"),
    "aten.count_nonzero.dim_IntList": rows.reduce("sum"),
    "aten.linalg_vector_norm.default": rows.norm,
    "aten.norm.Scalar": rows.norm,
    "aten.norm.ScalarOpt_dim": rows.norm,
    "aten.mean.default": rows.reduce("mean"),
    "aten.mean.dim": rows.reduce("mean"),
    "aten.var.default": rows.reduce("mean"),
    "aten.var.dim": rows.reduce("mean"),
    "aten.var.correction": rows.reduce("mean"),
    "aten.std.default": rows.reduce("mean"),
    "aten.std.dim": rows.reduce("mean"),
    "aten.std.correction": rows.reduce("mean"),
    "aten.var_mean.default": rows.reduce("mean"),
    "aten.var_mean.dim": rows.reduce("mean"),
    "aten.var_mean.correction": rows.reduce("mean"),
    "aten.std_mean.default": rows.reduce("mean"),
    "aten.std_mean.dim": rows.reduce("mean"),
    "aten.std_mean.correction": rows.reduce("mean"),
    "aten.all.default": rows.reduce("other"),
    "aten._is_all_true.default": rows.reduce("other"),
    "aten._is_any_true.default": rows.reduce("sum"),
    "aten.all.dim": rows.reduce("other"),
    "aten.all.dims": rows.reduce("other"),
    "aten.prod.default": rows.reduce("other"),
    "aten.prod.dim_int": rows.reduce("other"),
    "aten.max.default": rows.reduce("extreme"),
    "aten.max.dim": rows.chosen(1, "extreme"),
    "aten.min.default": rows.reduce("extreme"),
    "aten.min.dim": rows.chosen(1, "extreme"),
    "aten.amax.default": rows.reduce("extreme"),
    "aten.amin.default": rows.reduce("extreme"),
    "aten.aminmax.default": rows.reduce("other"),
    "aten.argmax.default": rows.chosen(0),
    "aten.argmin.default": rows.chosen(0),
    "aten.median.dim": rows.reduce("other"),
    "aten.logsumexp.default": rows.reduce("choice"),
    # views
    "aten.view.default": views.reshape("size"),
    "aten._unsafe_view.default": views.reshape("size"),
    "aten.reshape.default": views.reshape("shape"),
    "aten.flatten.using_ints": views.reshape(),
    "aten.unsqueeze.default": views.reshape(),
    "aten.squeeze.dim": views.squeeze,
    "aten.squeeze.dims": views.squeeze,
    "aten.unflatten.int": views.unflatten,
    "aten.permute.default": views.permute,
    "aten.transpose.int": views.transpose,
    "aten.swapaxes.default": views.transpose,
    "aten.adjoint.default": views.transpose,
    "aten.mT.default": views.transpose,
    "aten.t.default": views.reverse_axes,
    "aten.numpy_T.default": views.reverse_axes,
    "aten.movedim.intlist": views.movedim,
    "aten.movedim.int": views.movedim,
    "aten.expand.default": views.expand,
    "aten.broadcast_to.default": views.expand,
    "aten.broadcast_tensors.default": rows.elementwise,
    "aten.repeat.default": views.repeat,
    "aten.tile.default": views.repeat,
    "aten.repeat_interleave.self_int": views.repeat_interleave,
    "aten.view_as_real.default": views.view_as_real,
    "aten.view_as_complex.default": views.view_as_complex,
    # parts and joins
    "aten.cat.default": views.cat,
    "aten.concat.default": views.cat,
    "aten.concatenate.default": views.cat,
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
    "aten.embedding.default": views.embedding,
    "aten.embedding_bag.padding_idx": rows.embedding_bag,
    "aten.index_select.default": views.index_select,
    "aten.index.Tensor": views.index,
    "aten._unsafe_index.Tensor": views.index,
    "aten.index_put.default": views.index_put,
    "aten._unsafe_index_put.default": views.index_put,
    "aten.gather.default": views.gather,
    "aten.take_along_dim.default": views.take_along,
    "aten.one_hot.default": rows.one_hot,
    "aten.histc.default": rows.histc,
    "aten.scatter.src": views.scatter,
    "aten.scatter.value": views.scatter,
    "aten.scatter_add.default": views.scatter,
    "aten.scatter_reduce.two": views.scatter,
    "aten.index_add.default": views.index_add,
    "aten.index_copy.default": views.index_add,
    "aten.index_fill.int_Scalar": views.index_add,
    "aten.masked_scatter.default": views.masked_scatter,
    "aten.bucketize.Tensor": views.bucketize,
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
