"""Calls by hand of operators for which torch's database has no sample that fits: CALLS, name -> calls.

A call is an expression, in which OP is the operator and x, y, z are its inputs, and those inputs: shapes of
normal numbers, or tensors.
"""

import torch

X, ROWS, CUBE = (2, 4, 6, 6), (3, 8), (1, 2, 4, 6, 6)
WHOLE = torch.arange(24).reshape(4, 6) * 7 % 11
OTHER = torch.arange(24).reshape(4, 6) * 5 % 13
TRUTH = WHOLE > 4
IDS = torch.tensor([[1, 0, 4], [2, 2, 3]])

Call = tuple[object, ...]
COMPARED: dict[str, tuple[Call, ...]] = {
    f"{name}.Scalar": (("OP(x.round(), 0)", ROWS), ("OP(x, 4)", WHOLE))
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
COMPARED |= {
    f"{name}.Tensor": (("OP(x.round(), y.round())", ROWS, ROWS), ("OP(x, y)", WHOLE, OTHER))
    for name in ("eq", "ne", "lt", "le", "gt", "ge")
}
COMPARED |= {
    f"logical_{name}.default": (("OP(x, y)", TRUTH, OTHER > 4), ("OP(x.round(), y.round())", ROWS, ROWS))
    for name in ("and", "or", "xor")
}
BITWISE: dict[str, tuple[Call, ...]] = {
    f"bitwise_{name}.{kind}": (
        (f"OP(x, {other})", WHOLE, *more),
        *((f"OP(x, {other})", TRUTH, *truth),)[: len(more)],
    )
    for name in ("and", "or", "xor")
    for kind, other, more, truth in (("Tensor", "y", (OTHER,), (OTHER > 4,)), ("Scalar", "5", (), ()))
}
CALLS: dict[str, tuple[Call, ...]] = {
    **COMPARED,
    **BITWISE,
    "_adaptive_avg_pool2d.default": (("OP(x, [3, 3])", X), ("OP(x, [4, 1])", X)),
    "_adaptive_avg_pool3d.default": (("OP(x, [2, 3, 3])", CUBE), ("OP(x, [3, 4, 1])", CUBE)),
    "adaptive_avg_pool1d.default": (("OP(x, [3])", (2, 4, 6)), ("OP(x, [4])", (2, 4, 6))),
    "_cdist_forward.default": (
        ("OP(x, y, 2.0, None)", (2, 5, 4), (2, 3, 4)),
        ("OP(x, y, 1.0, None)", (5, 4), (3, 4)),
    ),
    "_embedding_bag.default": (("OP(x, y, torch.tensor([0, 3]))[0]", (5, 4), IDS.flatten()),),
    "_fft_r2c.default": (("torch.view_as_real(OP(x, [1], 0, True))", ROWS),),
    "_fft_c2r.default": (("OP(torch.view_as_complex(x), [1], 2, 8)", (3, 5, 2)),),
    "_local_scalar_dense.default": (("y * OP(x)", torch.tensor(3), ROWS),),
    "_log_softmax.default": (("OP(x, 1, False)", ROWS), ("OP(x * 30, 1, False)", X)),
    "_softmax.default": (("OP(x, 1, False)", ROWS), ("OP(x, 0, False)", X)),
    "_native_batch_norm_legit.default": (
        ("OP(x, y, y, torch.zeros(4), torch.ones(4), False, 0.1, 1e-5)[0]", X, (4,)),
    ),
    "_native_batch_norm_legit.no_stats": (("OP(x, y, y, True, 0.1, 1e-5)[0]", X, (4,)),),
    "_native_batch_norm_legit_no_training.default": (("OP(x, y, y, y, y.abs() + 1, 0.1, 1e-5)[0]", X, (4,)),),
    "_pdist_forward.default": (("OP(x, 2.0)", (5, 4)), ("OP(x, 1.0)", (5, 4))),
    "_to_copy.default": (
        *(("OP(x * 3, dtype=torch.int32)", ROWS), ("OP(x, dtype=torch.float32)", WHOLE)),
        *(("OP(x - 4, dtype=torch.bool)", WHOLE), ("OP(x, dtype=torch.float16).float()", ROWS)),
    ),
    "add.Scalar": (("OP(x, 0.5)", ROWS), ("OP(x, 3, 2)", WHOLE)),
    "sub.Scalar": (("OP(x, 0.5)", ROWS), ("OP(x, 3, 2)", WHOLE)),
    "mul.Scalar": (("OP(x, 0.5)", ROWS), ("OP(x, 3)", WHOLE)),
    "div.Scalar": (("OP(x, 0.5)", ROWS), ("OP(x, 3)", WHOLE)),
    "div.Scalar_mode": tuple(
        (f"OP({x}, {y}, rounding_mode={mode!r})", sample)
        for mode in ("floor", "trunc")
        for x, y, sample in (("x", 0.7, ROWS), ("x - 5", 3, WHOLE))
    ),
    "div.Tensor_mode": tuple(
        (f"OP({x}, {y}, rounding_mode={mode!r})", *sample)
        for mode in ("floor", "trunc", None)
        for x, y, sample in (("x", "y.abs() + 0.5", (ROWS, ROWS)), ("x - 5", "y + 1", (WHOLE, OTHER)))
    ),
    "fmod.Scalar": (("OP(x, 0.7)", ROWS), ("OP(x - 5, 3)", WHOLE)),
    "fmod.Tensor": (("OP(x, y.abs() + 0.5)", ROWS, ROWS), ("OP(x - 5, y + 1)", WHOLE, OTHER)),
    "remainder.Scalar": (("OP(x, 0.7)", ROWS), ("OP(x - 5, 3)", WHOLE), ("OP(x, 1)", ROWS)),
    "remainder.Tensor": (("OP(x, y.abs() + 0.5)", ROWS, ROWS), ("OP(x - 5, y + 1)", WHOLE, OTHER)),
    "pow.Scalar": (("OP(2, x)", ROWS), ("OP(0.5, x)", ROWS)),
    "pow.Tensor_Scalar": (("OP(x, 2)", ROWS), ("OP(x.abs() + 0.1, 0.7)", ROWS), ("OP(x, 3)", WHOLE)),
    "pow.Tensor_Tensor": (("OP(x.abs() + 0.1, y)", ROWS, ROWS), ("OP(x, y % 3)", WHOLE, OTHER)),
    "alias.default": (("OP(x) + 1", ROWS),),
    "any.dim": (
        ("OP(x * (x > 1), 0)", ROWS),
        ("OP(x, 0)", torch.eye(4, 6) > 0),
        ("OP((x - 2).clamp(max=0), 1)", WHOLE),
    ),
    "any.dims": (("OP(x * (x > 1), [0])", ROWS), ("OP(x > 2, [1, 2])", X)),
    "logical_not.default": (("OP(x)", TRUTH), ("OP(x.round())", ROWS)),
    "isinf.default": (("OP(torch.where(x > 1, float('inf'), x))", ROWS),),
    "isnan.default": (("OP(torch.where(x > 1, float('nan'), x))", ROWS),),
    "fill.Scalar": (("OP(x, 2.0) * x", ROWS),),
    "full_like.default": (("OP(x, 0.5) * x", ROWS), ("OP(x, 3, dtype=torch.float32) * x", WHOLE)),
    "hardtanh.default": (("OP(x)", ROWS), ("OP(x, 0, 6)", X)),
    "any.default": (("torch.stack([OP(x > 9), OP(x > -9)])", ROWS),),
    "arange.start_step": (("OP(0, 8, 1) * x", ROWS), ("OP(0.5, 4.5, 0.5) + x", ROWS)),
    "bitwise_not.default": (("OP(x)", TRUTH), ("OP(x)", WHOLE)),
    "clamp.default": (("OP(x, -0.5, 0.5)", ROWS), ("OP(x, 3)", WHOLE), ("OP(x, None, 0.3)", X)),
    "clamp.Tensor": (("OP(x, y, y + 1)", ROWS, ROWS), ("OP(x, y)", WHOLE, OTHER)),
    "col2im.default": (
        *(
            ("OP(x, [6, 6], [2, 2], [1, 1], [0, 0], [2, 2])", (2, 16, 9)),
            ("OP(x, [5, 5], [3, 3], [1, 1], [1, 1], [1, 1])", (1, 18, 25)),
        ),
    ),
    "constant_pad_nd.default": (
        ("OP(x, [1, 2, 0, 1], 0.5)", X),
        ("OP(x, [-1, 2])", ROWS),
        ("OP(x, [1, 0], 3)", WHOLE),
    ),
    "convolution.default": (
        ("OP(x, y, z, [1, 1], [1, 1], [1, 1], False, [0, 0], 1)", X, (3, 4, 3, 3), (3,)),
        ("OP(x, y, None, [2], [1], [1], False, [0], 2)", (2, 4, 9), (6, 2, 3)),
        ("OP(x, y, None, [2, 2], [1, 1], [1, 1], True, [1, 1], 1)", X, (4, 3, 3, 3)),
        ("OP(x, y, None, [1, 1, 1], [1, 1, 1], [1, 1, 1], False, [0, 0, 0], 1)", CUBE, (3, 2, 3, 3, 3)),
    ),
    "copy.default": (("OP(x * 0, y) + x", ROWS, ROWS),),
    "cumsum.default": (("OP(x, 1)", ROWS), ("OP(x, 0)", WHOLE), ("OP(x, -1)", X)),
    "embedding.default": (("OP(x, y)", (5, 4), IDS), ("OP(x, y, 0)", (5, 4), IDS)),
    "empty.memory_format": (("OP([3, 8]) * 0 + x", ROWS), ("torch.fill(OP([3, 8]), 2.0) * x", ROWS)),
    "empty_strided.default": (("torch.fill(OP([3, 8], [8, 1]), 2.0) * x", ROWS),),
    "full.default": (("OP([3, 8], 0.5) * x", ROWS), ("OP([4, 6], 3) + x", WHOLE)),
    "index.Tensor": (
        *(("OP(x, [y])", (5, 4), IDS), ("OP(x, [None, y])", (3, 5), IDS), ("OP(x, [y, y])", (5, 5), IDS)),
    ),
    "index_put.default": (
        ("OP(x, [y], z)", (5, 4), torch.tensor([3, 1]), (2, 4)),
        ("OP(x, [y], z, True)", (5, 4), torch.tensor([3, 1, 3]), (3, 4)),
        ("OP(x, [x > 0], torch.tensor(0.5))", (5, 4)),
    ),
    "masked_scatter.default": (("OP(x, x > 0, y)", ROWS, ROWS),),
    "max_pool2d_with_indices.default": (
        ("OP(x, [2, 2])[0]", X),
        ("OP(x, [3, 3], [2, 2], [1, 1], [1, 1], True)[0]", X),
        ("OP(x, [2, 2])", X),
    ),
    "max_pool3d_with_indices.default": (("OP(x, [2, 2, 2])[0]", CUBE), ("OP(x, [2, 2, 2])", CUBE)),
    "mean.default": (("torch.stack([OP(x), OP(x * 2)])", ROWS),),
    "native_layer_norm.default": (
        ("OP(x, [8], y, y, 1e-5)[0]", ROWS, (8,)),
        ("OP(x, [6, 6], None, None, 1e-5)[0]", X),
    ),
    "native_group_norm.default": (
        ("OP(x, y, y, 2, 4, 36, 2, 1e-5)[0]", X, (4,)),
        ("OP(x, None, None, 2, 4, 36, 4, 1e-5)[0]", X),
    ),
    "native_dropout.default": (("OP(x, 0.5, False)[0]", ROWS),),
    "nonzero.default": (("OP(x)", WHOLE),),
    "prod.default": (("torch.stack([OP(x), OP(x * 1.1)])", ROWS),),
    "prod.dim_int": (("OP(x, 1)", ROWS), ("OP(x, 0, True)", (3, 4))),
    "reflection_pad1d.default": (("OP(x, [2, 1])", (2, 4, 6)),),
    "reflection_pad2d.default": (("OP(x, [2, 1, 0, 3])", X),),
    "reflection_pad3d.default": (("OP(x, [2, 1, 0, 3, 1, 1])", CUBE),),
    "replication_pad2d.default": (("OP(x, [2, 1, 0, 3])", X),),
    "replication_pad3d.default": (("OP(x, [2, 1, 0, 3, 1, 1])", CUBE),),
    "scalar_tensor.default": (("OP(0.5) * x", ROWS), ("OP(3) + x", WHOLE)),
    "scatter.value": (("OP(x, 1, y, 0.5)", (2, 5), IDS), ("OP(x * 0, 1, y, 1)", WHOLE[:2], IDS)),
    "scatter.src": (("OP(x, 1, y, z)", (2, 5), torch.tensor([[1, 0, 4], [2, 0, 3]]), (2, 3)),),
    "scatter_add.default": (("OP(x, 1, y, z)", (2, 5), IDS, (2, 3)),),
    "scatter_reduce.two": tuple(
        (f"OP(x, 1, y, z, {kind!r}, include_self={own})", (2, 5), IDS, (2, 3))
        for kind in ("sum", "mean", "amax", "amin", "prod")
        for own in (True, False)
    ),
    "slice_scatter.default": (("OP(x, y, 1, 2, 5)", ROWS, (3, 3)), ("OP(x, y, 1, 0, 8, 2)", ROWS, (3, 4))),
    "sort.default": (("OP(x, 1)", ROWS), ("OP(x, 0, True)", ROWS), ("OP(x, 1)[0]", WHOLE)),
    "sym_numel.default": (("x * x.numel()", ROWS),),
    "sym_size.int": (("x * x.size(1)", ROWS),),
    "sym_stride.int": (("x * x.stride(0)", ROWS),),
    "sym_storage_offset.default": (("x + x.storage_offset()", ROWS),),
    "sym_is_contiguous.default": (("x + float(x.is_contiguous())", ROWS),),
    "topk.default": (("OP(x, 3)", ROWS), ("OP(x, 2, 0, False)", ROWS)),
    "upsample_bilinear2d.vec": (
        *(
            ("OP(x, None, False, [2.0, 2.0])", X),
            ("OP(x, [9, 5], True, None)", X),
            ("OP(x, [4, 13], False, None)", X),
        ),
    ),
    "upsample_nearest2d.vec": (("OP(x, None, [2.0, 2.0])", X), ("OP(x, [9, 5], None)", X)),
    "where.self": (
        ("OP(x > 0, x, y)", ROWS, ROWS),
        ("OP(x > 4, x, y)", WHOLE, OTHER),
        ("OP(x, y > 4, x)", TRUTH, WHOLE),
    ),
    "_adaptive_avg_pool2d_backward.default": (("OP(x, y)", (2, 4, 3, 3), X),),
    "avg_pool2d_backward.default": (
        ("OP(x, y, [2, 2], [2, 2], [0, 0], False, True, None)", (2, 4, 3, 3), X),
    ),
    "convolution_backward.default": (
        (
            "OP(x, y, z, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, False])[0]",
            *((2, 3, 6, 6), X, (3, 4, 3, 3)),
        ),
    ),
    "embedding_dense_backward.default": (("OP(x, y, 5, -1, False)", (2, 3, 4), IDS),),
    "max_pool2d_with_indices_backward.default": (
        (
            "OP(x, y, [2, 2], [2, 2], [0, 0], [1, 1], False, F.max_pool2d(y, 2, return_indices=True)[1])",
            *((2, 4, 3, 3), X),
        ),
    ),
    "native_group_norm_backward.default": (
        ("OP(x, y, z, z.abs() + 1, None, 2, 4, 36, 2, [True, False, False])[0]", X, X, (2, 2)),
    ),
    "native_layer_norm_backward.default": (
        ("OP(x, y, [8], z, z.abs() + 1, None, None, [True, False, False])[0]", ROWS, ROWS, (3, 1)),
    ),
    "rand.default": (("OP([3, 8]) + x", ROWS),),
    "randn.default": (("OP([3, 8]) + x", ROWS),),
    "randperm.default": (("OP(8) + x", ROWS),),
    "resize_.default": (("OP(x.clone(), [8, 3])", ROWS),),
}
