"""The steps that programs of bench/module_grammar.py grow by: STEPS, name -> (weight, what writes it).

A step takes the program so far and gives an expression, or a layer and an expression that calls it as LAYER.
"""

from collections.abc import Callable
from typing import Any

from module_grammar import Program, Unfit

Step = str | tuple[str, str]


def _templates(*texts: str) -> Callable[[Program], Step]:
    """One of the texts: {x} a floating-point value, {y} another of its shape, {d} an axis of x."""

    def step(p: Program) -> Step:
        x = p.floats()
        text = p.pick(texts)
        return text.format(x=x, y=p.like(x), d=p.axis(x) if "{d}" in text else "")

    return step


def _layers(rank: int, *texts: str) -> Callable[[Program], Step]:
    """One of the layers on a value [n, {c}, ...] of the rank."""

    def step(p: Program) -> Step:
        x = p.floats(rank)
        layer = p.pick(texts)
        c, last = p.values[x].shape[1], p.values[x].shape[-1]
        groups = p.pick([g for g in (1, 2, 3, 4, 8) if c % g == 0])
        out = p.pick((2, 4, 6)) * groups
        kernel, stride = p.pick((1, 2, 3, 5)), p.pick((1, 1, 2, 3))
        padding, dilation = p.pick((0, 0, 1, 2)), p.pick((1, 1, 1, 2))
        mode = p.pick(("zeros", "zeros", "reflect", "replicate", "circular"))
        flag, other = p.pick((True, False)), p.pick((True, False))
        names = dict(c=c, last=last, g=groups, o=out, k=kernel, s=stride, p=padding, d=dilation, mode=mode)
        return layer.format(**names, flag=flag, other=other, half=min(padding, kernel // 2)), f"LAYER({x})"

    return step


def linear(p: Program) -> Step:
    x = p.floats()
    size = p.values[x].shape[-1] if p.values[x].ndim else 0
    return f"nn.Linear({size}, {p.pick((4, 6, 8))}, bias={p.pick((True, False))})", f"LAYER({x})"


def embedding(p: Program) -> Step:
    x = p.one(lambda v: not v.is_floating_point() and v.ndim < 4 and int(v.min()) >= 0 and int(v.max()) < 10)
    if str(p.values[x].dtype) == "torch.bool":
        raise Unfit
    return f"nn.Embedding(10, {p.pick((4, 6))}, padding_idx={p.pick((None, 0))})", f"LAYER({x})"


def attention(p: Program) -> Step:
    x = p.floats(3)
    width = p.values[x].shape[-1]
    heads = p.pick([h for h in (1, 2, 4) if width % h == 0])
    layer = f"nn.MultiheadAttention({width}, {heads}, batch_first={p.pick((True, False))})"
    other = p.one(lambda v: v.is_floating_point() and v.ndim == 3 and v.shape[-1] == width)
    return layer, f"LAYER({x}, {other}, {other})[{p.pick((0, 0, 1))}]"


def attend(p: Program) -> Step:
    x = p.floats(3, 4)
    width, length = p.values[x].shape[-1], p.values[x].shape[-2]
    y = p.like(x)
    options = (
        *("", ", is_causal=True", f", scale={p.pick((0.5, 1.0))}"),
        f", attn_mask=torch.ones({length}, {length}, dtype=torch.bool).tril()",
        f", attn_mask=torch.zeros({length}, {length}).masked_fill(torch.eye({length}) > 0, float('-inf'))",
    )
    if length < 2 or width < 2:
        raise Unfit
    return f"F.scaled_dot_product_attention({x}, {y}, {x}{p.pick(options)})"


def transformer(p: Program) -> Step:
    x = p.floats(3)
    width = p.values[x].shape[-1]
    options = f"norm_first={p.pick((True, False))}, activation={p.pick(('relu', 'gelu'))!r}"
    heads = 2 if width % 2 == 0 else 1
    return f"nn.TransformerEncoderLayer({width}, {heads}, 8, batch_first=True, {options})", f"LAYER({x})"


def recurrent(p: Program) -> Step:
    x = p.floats(3)
    kind = p.pick(("LSTM", "GRU", "RNN"))
    options = f"batch_first={p.pick((True, False))}, bidirectional={p.pick((True, False))}"
    return f"nn.{kind}({p.values[x].shape[-1]}, 4, {options})", f"LAYER({x})[0]"


def norm(p: Program) -> Step:
    x = p.floats(2, 3, 4)
    shape = list(p.values[x].shape)
    tail = shape[-p.pick((1, 1, 2)) :]
    layers = (f"nn.LayerNorm({tail})", f"nn.LayerNorm({tail}, bias=False)", f"nn.RMSNorm({tail})")
    return p.pick(layers), f"LAYER({x})"


def interpolate(p: Program) -> Step:
    x = p.floats(3, 4, 4, 5)
    rank = p.values[x].ndim
    smooth = {3: "linear", 4: "bilinear", 5: "trilinear"}[rank]
    mode = p.pick(("nearest", "nearest-exact", "area", smooth, smooth, *(("bicubic",) if rank == 4 else ())))
    spatial = p.values[x].shape[2:]
    sizes = (
        *("scale_factor=2", "scale_factor=0.5", "scale_factor=1.5"),
        f"size={tuple(size + p.pick((-2, -1, 1, 3)) for size in spatial)}",
    )
    align = ""
    if mode in ("linear", "bilinear", "trilinear", "bicubic"):
        align = f", align_corners={p.pick((True, False, None))}"
    if mode in ("bilinear", "bicubic") and p.pick((True, False, False)):
        align += ", antialias=True"
    return f"F.interpolate({x}, {p.pick(sizes)}, mode={mode!r}{align})"


def reshape(p: Program) -> Step:
    x = p.floats()
    shape = list(p.values[x].shape)
    if len(shape) < 2:
        return f"{x}.reshape(2, -1)"
    forms = (
        f"{x}.reshape({shape[0]}, -1)",
        f"{x}.flatten({p.pick((0, 1, -2))})",
        f"{x}.reshape({[*shape[:-2], shape[-2] * shape[-1]]})",
        f"{x}.transpose({p.axis(x)}, {p.axis(x)}).reshape({shape[::-1]})",
        f"{x}.unflatten({p.pick((-1, 1))}, (2, -1))",
        f"{x}.view({[*shape[:-1], 1, shape[-1]]})",
    )
    return p.pick(forms)


def permute(p: Program) -> Step:
    x = p.floats(2, 3, 4)
    order = list(range(p.values[x].ndim))
    for index in range(len(order)):
        other = p.pick(range(len(order)))
        order[index], order[other] = order[other], order[index]
    return p.pick((f"{x}.permute({order})", f"{x}.transpose({p.axis(x)}, {p.axis(x)})", f"{x}.mT"))


def cut(p: Program) -> Step:
    x = p.floats()
    axis = p.axis(x)
    size = p.values[x].shape[axis]
    index = [":"] * p.values[x].ndim
    index[axis] = p.pick(("::2", "1:", ":-1", f"{size // 2}:", "-2:", "0", "-1", "None", "1::2"))
    first = max(size // 2, 1)
    forms = (
        *(f"{x}[{', '.join(index)}]", f"{x}[..., {p.pick(('-1', '1:', '::2', ':-1, None'))}]"),
        *(f"{x}.chunk(2, {axis})[{p.pick((0, -1))}]", f"{x}.narrow({axis}, {size - first}, {first})"),
        *(f"{x}.split({first}, {axis})[{p.pick((0, -1))}]", f"{x}.select({axis}, {p.pick((0, -1))})"),
        f"torch.tensor_split({x}, 3, {axis})[1]",
        f"{x}.unbind({axis})[0]",
        f"torch.index_select({x}, {axis}, torch.tensor([{p.pick((0, size - 1))}, 0]))",
        f"{x}.diagonal({p.pick((0, 1, -1))}, -2, -1)",
    )
    return p.pick(forms)


def join(p: Program) -> Step:
    x = p.floats()
    y, axis = p.like(x), p.axis(x)
    forms = (
        *(f"torch.cat([{x}, {y}], {axis})", f"torch.stack([{x}, {y}], {axis})"),
        *(
            f"torch.cat([{x}, {y}, {x} * 0.5], {axis})",
            f"torch.hstack([{x}, {y}])",
            f"torch.vstack([{x}, {y}])",
        ),
    )
    return p.pick(forms)


def move(p: Program) -> Step:
    x = p.floats()
    axis, ndim = p.axis(x), p.values[x].ndim
    one = ", ".join(["1"] * (ndim - 1) + ["2"])
    amounts = ", ".join(str(p.pick((0, 1, 2, -1))) for _ in range(2 * p.pick((1, 2))))
    forms = (
        *(
            f"torch.roll({x}, {p.pick((1, -1, 2))}, {axis})",
            f"torch.flip({x}, [{axis}])",
            f"{x}.repeat({one})",
        ),
        *(f"F.pad({x}, ({amounts}))", f"F.pad({x}, ({amounts}), value={p.pick((1.0, -0.5))})"),
        *(
            f"F.pad({x}, (1, 2), mode={p.pick(('reflect', 'replicate', 'circular'))!r})",
            f"{x}.unsqueeze({axis})",
        ),
        *(f"{x}.repeat_interleave(2, {axis})", f"{x}.expand(2, *{x}.shape)", f"{x}.squeeze({axis})"),
        *(f"torch.rot90({x}, 1, [-2, -1])", f"{x}.movedim({axis}, {p.axis(x)})", f"torch.roll({x}, 3)"),
        *(f"torch.tril({x}, {p.pick((0, -1, 1))})", f"torch.triu({x})", f"{x}.unfold({axis}, 2, 1)"),
        f"F.pad({x}, (1, 1, 2, 0), mode={p.pick(('reflect', 'replicate', 'circular'))!r})",
    )
    return p.pick(forms)


def reduce(p: Program) -> Step:
    x = p.floats()
    axis, keep = p.axis(x), p.pick((True, False))
    kinds = ("mean", "sum", "amax", "amin", "std", "var", "logsumexp", "prod", "norm")
    kind = p.pick(kinds)
    if kind == "norm":
        return f"{x}.norm(p={p.pick((2, 1, float('inf')))!r}, dim={axis}, keepdim={keep})".replace(
            "inf", "math.inf"
        )
    if kind in ("std", "var") and p.pick((True, False)):
        return f"{x}.{kind}({axis}, unbiased=False, keepdim={keep})"
    forms = (
        f"{x}.{kind}({axis}, keepdim={keep})",
        f"{x}.{kind}({axis}, keepdim={keep})",
        f"torch.{p.pick(('max', 'min', 'median'))}({x}, {axis}, keepdim={keep}).values",
        f"{x} - {x}.mean({axis}, keepdim=True)",
        f"{x}.mean((-2, -1), keepdim={keep})",
        f"{x}.{p.pick(('cumsum', 'cumsum', 'logcumsumexp', 'cumprod'))}({axis})",
        f"torch.cummax({x}, {axis}).values",
        f"({x} > 0).sum({axis}).float()",
        f"torch.softmax({x}, {axis})",
        f"F.log_softmax({x}, {axis})",
        f"F.normalize({x}, dim={axis})",
    )
    return p.pick(forms)


def choose(p: Program) -> Step:
    x = p.floats()
    axis, y = p.axis(x), p.like(x)
    size = p.values[x].shape[axis]
    forms = (
        *(
            f"{x}.argmax({axis})",
            f"{x}.argmin({axis}, keepdim=True)",
            f"{x}.topk({min(2, size)}, {axis}).values",
        ),
        *(f"{x}.sort({axis}, descending={p.pick((True, False))}).values", f"{x}.argsort({axis})"),
        *(f"{x}.topk({min(2, size)}, {axis}).indices", f"{x}.gather({axis}, {y}.argsort({axis}))"),
        f"torch.take_along_dim({x}, {x}.argmax({axis}, keepdim=True), {axis})",
        f"torch.zeros_like({x}).scatter({axis}, {x}.argmax({axis}, keepdim=True), 1.0)",
        f"F.one_hot({x}.argmax({axis}), {size}).float()",
        f"torch.scatter_add(torch.zeros_like({x}), {axis}, {x}.argsort({axis}), {y})",
    )
    return p.pick(forms)


def compare(p: Program) -> Step:
    x = p.floats()
    y, sign = p.like(x), p.pick(("<", ">", "<=", ">=", "=="))
    forms = (
        *(f"{x} {sign} 0.1", f"{x} {sign} {y}", f"torch.where({x} {sign} 0.2, {x}, {y} * 2)"),
        *(f"{x}.masked_fill({y} {sign} 0.3, {p.pick((0.0, -1.0, 2.0))})", f"({x} > 0) & ({y} < 1)"),
        *(f"torch.where({x} > {y}, {x}, 0.0)", f"{x} * ({y} > 0)", f"({x} > 0).any({p.axis(x)})"),
        *(
            f"({x} > 0).to({x}.dtype) - 0.5",
            f"({x} > -3).all()",
            f"~({x} > 0) | ({y} > 1)",
            f"torch.isfinite({x})",
        ),
        *(f"torch.maximum({x}, {y})", f"torch.minimum({x}, {y})", f"torch.logical_xor({x} > 0, {y} > 0)"),
    )
    return p.pick(forms)


def whole(p: Program) -> Step:
    """Arithmetic of whole numbers."""
    x = p.one(lambda v: not v.is_floating_point() and v.dtype != p.values["x"].new_zeros(0).bool().dtype)
    y, n = p.like(x), p.pick((2, 3, -2, 7))
    forms = (
        *(f"{x} + {n}", f"{x} * {n}", f"{x} // {n}", f"{x} % {n}", f"{x} - {y}", f"{x} * {y} - {n}"),
        *(f"{x}.float() / {n}", f"{x} / {n}", f"{x} & 3", f"{x} | 4", f"{x} ^ {y}", f"{x} << 1", f"{x} >> 1"),
        *(
            f"{x}.clamp(1, 3)",
            f"{x}.abs() + 1",
            f"{x} == {y}",
            f"({x} > 1).long()",
            f"-{x}",
            f"{x}.cumsum(-1)",
        ),
        *(f"{x}.sum(-1)", f"{x}.float()", f"{x}.amax(-1)", f"torch.div({x}, {n}, rounding_mode='trunc')"),
        *(
            f"F.one_hot({x} % 4, 4)",
            f"torch.where({x} > 1, {x}, -{y})",
            f"{x}.to(torch.int32)",
            f"{x}.pow(2)",
        ),
        *(f"torch.fmod({x}, {n})", f"{x} != 1", f"{x}.sort(-1).values", f"{x}.argmax(-1)", f"{x}.flip(-1)"),
        *(
            f"torch.arange({x}.shape[-1]) + {x}",
            f"{x}.mean(-1, dtype=torch.float32)",
            f"{x}.bool()",
            f"{x}.float().log1p()",
        ),
    )
    return p.pick(forms)


def truth(p: Program) -> Step:
    """What is made of truth values."""
    x = p.one(lambda v: not v.is_floating_point() and v.ndim > 0 and int(v.max()) <= 1 and int(v.min()) >= 0)
    axis = p.axis(x)
    forms = (
        *(f"{x}.float()", f"{x}.long()", f"{x}.sum({axis})", f"{x}.float().mean({axis})", f"{x} * 2.5"),
        *(f"{x}.bool().logical_not()", f"{x}.any({axis})", f"{x}.all({axis})", f"{x}.cumsum({axis})"),
        *(
            f"torch.where({x}.bool(), 1.5, -0.5)",
            f"1.0 - {x}.float()",
            f"{x} & {p.like(x)}",
            f"{x}.flip({axis})",
        ),
        *(f"torch.cat([{x}, {p.like(x)}], {axis})", f"{x}.int() - 1", f"{x}.transpose({axis}, {p.axis(x)})"),
    )
    return p.pick(forms)


def index(p: Program) -> Step:
    x = p.floats()
    shape = list(p.values[x].shape)
    if not shape:
        raise Unfit
    size, last = shape[0], shape[-1]
    forms = (
        *(f"{x}[torch.tensor([0, {size - 1}, 0])]", f"{x}[..., torch.tensor([{last - 1}, 0])]", f"{x}[None]"),
        *(
            f"{x}[:, torch.tensor([0])]",
            f"{x}[torch.tensor([0]), torch.tensor([-1])]",
            f"{x}[torch.arange({size})]",
        ),
        *(f"{x}[..., torch.tensor([[0, 1], [1, 0]])]", f"{x}[:, None, ..., -1]"),
        f"{x}.index_fill({p.axis(x)}, torch.tensor([0]), 0.5)",
        f"{x}.index_add(0, torch.tensor([0]), {x}[:1] * 2)",
        f"{x}[torch.tensor([0, 0])[:, None], torch.tensor([0, 1])]",
        f"torch.take({x}, torch.tensor([0, 1]))",
        f"{x}[..., torch.tensor([True] + [False] * {last - 2} + [True])]",
    )
    return p.pick(forms)


def chosen_index(p: Program) -> Step:
    """Rows chosen by an integer input."""
    i = p.one(lambda v: not v.is_floating_point() and int(v.min()) >= 0 and v.ndim <= 2)
    x = p.one(lambda v: v.is_floating_point() and v.ndim > 0 and v.shape[0] > int(p.values[i].max()))
    return p.pick((f"{x}[{i}]", f"torch.index_select({x}, 0, {i}.flatten())", f"F.embedding({i}, {x})"))


def in_place(p: Program) -> Step:
    """What people write in place, as functions of a clone."""
    x = p.floats()
    y = p.like(x)
    forms = (
        *(f"{x}.clone().mul_(2).add_({y})", f"F.relu_({x} + 0)", f"{x}.clone().clamp_(-1, 1)"),
        *(f"{x}.clone().masked_fill_({y} > 0, 0.0)", f"torch.zeros_like({x}).copy_({y}) + {x}"),
        *(f"{x}.clone().index_copy_(0, torch.tensor([0]), {y}[:1])", f"{x}.clone().transpose_(0, -1)"),
        *(f"torch.slice_scatter({x}, {y}[:1], 0, 0, 1)", f"torch.select_scatter({x}, {y}[0], 0, 0)"),
        *(f"{x}.clone().addcmul_({y}, {y}, value=0.5)", f"torch.empty_like({x}).fill_(0.5) * {y}"),
        f"{x}.index_put((torch.tensor([0]),), {y}[:1])",
        f"torch.diagonal_scatter({x}, torch.diagonal({y}))",
    )
    return p.pick(forms)


def product(p: Program) -> Step:
    x = p.floats(2, 3, 4)
    y, rank = p.like(x), p.values[x].ndim
    forms: Any = {
        2: (f"torch.einsum('ij,kj->ik', {x}, {y})", f"torch.einsum('ij,ij->i', {x}, {y})", f"torch.outer({x}[0], {y}[:, 0])"),
        3: (f"torch.einsum('bij,bkj->bik', {x}, {y})", f"torch.einsum('bij,bik->bjk', {x}, {y})", f"torch.einsum('bij->bji', {x})",
            f"torch.baddbmm({x} @ {x}.mT, {x}, {y}.mT, beta=0.5)", f"torch.einsum('bij,cij->bc', {x}, {y})"),
        4: (f"torch.einsum('bhid,bhjd->bhij', {x}, {y})", f"torch.einsum('bchw,bchw->bhw', {x}, {y})",
            f"torch.einsum('nchw,ndhw->ncd', {x}, {y})", f"torch.einsum('bhwc,bkwc->bhkw', {x}, {y})"),
    }  # fmt: skip
    common = (
        f"{x} @ {y}.mT",
        f"torch.matmul({x}.mT, {y})",
        f"{x} @ {y}[..., 0]",
        f"torch.cdist({x}, {y})",
        f"torch.tensordot({x}, {y}, dims=([0], [0]))",
    )
    return p.pick(
        (*forms[rank], *common, f"F.cosine_similarity({x}, {y}, dim=-1)", f"F.pairwise_distance({x}, {y})")
    )


def vision(p: Program) -> Step:
    x = p.floats(4)
    n, c, h, w = p.values[x].shape
    modes = f"mode={p.pick(('bilinear', 'nearest'))!r}, padding_mode={p.pick(('zeros', 'border', 'reflection'))!r}"
    grid = f"torch.tanh({x}.mean(1)[..., None].expand({n}, {h}, {w}, 2))"
    forms = (
        *(f"F.pixel_shuffle({x}, 2)", f"F.pixel_unshuffle({x}, 2)", f"F.channel_shuffle({x}, 2)"),
        *(
            f"F.unfold({x}, 3, padding={p.pick((0, 1))}, stride={p.pick((1, 2))})",
            f"F.local_response_norm({x}, 3)",
        ),
        f"F.grid_sample({x}, {grid}, {modes}, align_corners={p.pick((True, False))})",
        f"F.fold(F.unfold({x}, 2), ({h}, {w}), 2)",
        f"F.grid_sample({x}, F.affine_grid(torch.eye(2, 3)[None].repeat({n}, 1, 1), {[n, c, h, w]}, align_corners=False), align_corners=False)",
        f"F.lp_pool2d({x}, 2, 2)",
        f"{x}.to(memory_format=torch.channels_last) + 1",
    )
    return p.pick(forms)


elementwise = _templates(
    *("F.relu({x})", "F.gelu({x})", "F.gelu({x}, approximate='tanh')", "F.silu({x})", "F.mish({x})", "{x}.sigmoid()"),
    *("{x}.tanh()", "F.elu({x})", "F.selu({x})", "F.leaky_relu({x}, 0.1)", "F.hardswish({x})", "F.softplus({x})"),
    *("F.hardtanh({x}, -0.5, 0.5)", "F.relu6({x})", "F.hardsigmoid({x})", "F.logsigmoid({x})", "F.celu({x}, 0.7)"),
    *("F.softsign({x})", "F.tanhshrink({x})", "F.softshrink({x}, 0.3)", "F.hardshrink({x}, 0.3)", "F.threshold({x}, 0.1, -1)"),
    *("{x}.abs()", "-{x}", "{x}.exp().clamp(max=20)", "({x}.abs() + 0.5).log()", "({x}.abs() + 0.1).sqrt()"),
    *("torch.rsqrt({x} ** 2 + 0.5)", "{x}.sin()", "{x}.cos()", "torch.atan({x})", "torch.atan2({x}, {y})", "{x}.erf()"),
    *("{x}.floor()", "{x}.ceil()", "{x}.round()", "{x}.sign()", "{x}.trunc()", "{x}.frac()", "{x}.square()"),
    *("torch.sinh({x}.clamp(-2, 2))", "torch.asinh({x})", "torch.acos({x}.tanh() * 0.9)", "torch.expm1({x}.clamp(max=2))"),
    *("torch.log1p({x}.abs())", "torch.log2({x}.abs() + 1)", "torch.log10({x}.abs() + 1)", "1 / ({x}.abs() + 0.5)"),
    *("torch.exp2({x}.clamp(max=3))", "torch.sinc({x})", "torch.logit({x}.sigmoid(), 1e-3)", "torch.erfinv({x}.tanh() * 0.9)"),
    *("F.glu({x}, {d})", "torch.nan_to_num({x})", "{x}.detach() + 1", "F.dropout({x}, 0.5, False)", "F.relu({x}, True)"),
    *("F.softmin({x}, {d})", "torch.tan({x}.clamp(-1, 1))", "F.rrelu({x})", "{x}.double().float()", "torch.special.i0({x})"),
)  # fmt: skip
arithmetic = _templates(
    *("{x} + {y}", "{x} * {y}", "{x} - 0.5", "2 * {x}", "1 - {x}", "{x} / ({y}.abs() + 0.5)", "{x} ** 2", "{x} ** 3"),
    *("{x}.clamp(-0.5, 0.8)", "{x}.clamp(min=0.1)", "torch.clamp({x}, max={y})", "{x} // 0.5", "{x} % 1", "{x} // 1"),
    *("torch.lerp({x}, {y}, 0.3)", "torch.addcdiv({x}, {y}, {y}.abs() + 1)", "torch.fmod({x}, 0.7)", "{x} % 0.7"),
    *("torch.pow(2.0, {x}.clamp(-3, 3))", "({x}.abs() + 0.1) ** 0.5", "({x}.abs() + 0.1) ** {y}.clamp(-1, 2)"),
    *("torch.hypot({x}, {y})", "torch.add({x}, {y}, alpha=0.5)", "torch.rsub({x}, 2)", "torch.remainder({x}, {y}.abs() + 0.5)"),
    *("{x} + {x}.mean({d}, keepdim=True)", "{x} * {x}.amax({d}, keepdim=True)", "{x} + torch.arange({x}.shape[-1])"),
    *("torch.floor_divide({x}, 0.3)", "torch.xlogy({x}, {y}.abs() + 1)", "torch.logaddexp({x}, {y})", "torch.copysign({x}, {y})"),
    *("{x}.float().half().float()", "({x} * 4).to(torch.int32)", "({x} * 3).long()", "({x} * 2).int().float()"),
    *("torch.heaviside({x}, {y})", "({x} + 3) / 6", "{x}.clamp(0, 1).pow(2.2)", "{x}.abs().pow(-0.5).clamp(max=4)"),
    "{x} * torch.linspace(0, 1, {x}.shape[-1])",
)  # fmt: skip

STEPS: dict[str, tuple[int, Callable[[Program], Step]]] = {
    "conv1d": (2, _layers(3, "nn.Conv1d({c}, {o}, {k}, {s}, {p}, {d}, {g}, padding_mode={mode!r})",
                          "nn.ConvTranspose1d({c}, {o}, {k}, {s}, {half}, groups={g}, dilation={d})")),
    "conv2d": (8, _layers(4, *["nn.Conv2d({c}, {o}, {k}, {s}, {p}, {d}, {g}, {flag}, {mode!r})"] * 2,
                          "nn.Conv2d({c}, {o}, {k}, padding='same', dilation={d})", "nn.Conv2d({c}, {c}, (3, 1), padding=(1, 0), groups={c})",
                          "nn.ConvTranspose2d({c}, {o}, {k}, {s}, {half}, groups={g}, bias={flag}, dilation={d})",
                          "nn.ConvTranspose2d({c}, {o}, 3, 2, 1, output_padding=1)")),
    "conv3d": (1, _layers(5, "nn.Conv3d({c}, {o}, {k}, {s}, {p}, groups={g})", "nn.ConvTranspose3d({c}, {o}, 2, 2)")),
    "pool1d": (2, _layers(3, "nn.MaxPool1d({k}, {s}, {half}, ceil_mode={flag})", "nn.AdaptiveAvgPool1d({k})", "nn.AdaptiveMaxPool1d({k})",
                          "nn.AvgPool1d({k}, {s}, {half}, ceil_mode={flag}, count_include_pad={other})")),
    "pool2d": (5, _layers(4, "nn.MaxPool2d({k}, {s}, {half}, ceil_mode={flag})", "nn.MaxPool2d({k}, {s}, {half}, {d}, ceil_mode={flag})",
                          "nn.AvgPool2d({k}, {s}, {half}, ceil_mode={flag}, count_include_pad={other})", "nn.AdaptiveAvgPool2d({k})",
                          "nn.AdaptiveMaxPool2d({k})", "nn.AvgPool2d({k}, {s}, {half}, {flag}, {other}, 3)", "nn.AdaptiveAvgPool2d((None, {k}))")),
    "pool3d": (1, _layers(5, "nn.MaxPool3d({k}, {s}, {half}, ceil_mode={flag})", "nn.AdaptiveAvgPool3d({k})",
                          "nn.AvgPool3d({k}, {s}, {half}, ceil_mode={flag}, count_include_pad={other})")),
    "norm2d": (3, _layers(4, "nn.BatchNorm2d({c})", "nn.GroupNorm({g}, {c})", "nn.InstanceNorm2d({c}, affine={flag})", "nn.PReLU({c})", "nn.Dropout2d()")),
    "norm1d": (1, _layers(3, "nn.BatchNorm1d({c})", "nn.GroupNorm({g}, {c})", "nn.InstanceNorm1d({c})", "nn.PReLU()")),
    "upsample": (1, _layers(4, "nn.Upsample(scale_factor=2, mode='bilinear')", "nn.ZeroPad2d({p})", "nn.ReflectionPad2d({p})", "nn.Softmax2d()",
                            "nn.ReplicationPad2d((1, 0, {p}, 2))", "nn.CircularPad2d(1)", "nn.PixelShuffle({k})", "nn.UpsamplingNearest2d(scale_factor=3)")),
    "linear": (5, linear), "norm": (4, norm), "embedding": (5, embedding), "attention": (2, attention),
    "attend": (2, attend), "transformer": (1, transformer), "recurrent": (1, recurrent),
    "elementwise": (10, elementwise), "arithmetic": (9, arithmetic), "interpolate": (3, interpolate),
    "reshape": (4, reshape), "permute": (4, permute), "cut": (5, cut), "join": (4, join), "move": (5, move),
    "reduce": (6, reduce), "choose": (3, choose), "compare": (5, compare), "whole": (6, whole), "truth": (4, truth),
    "index": (3, index), "chosen_index": (3, chosen_index), "in_place": (3, in_place), "product": (3, product),
    "vision": (3, vision),
}  # fmt: skip
