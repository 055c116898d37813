"""Everything in other libraries that cidermill changes while it works.

All of it is put back, and several threads may ask for it at once: the first to come makes a change, the last
to leave undoes it.

Environment variables, none but in processes of the command line, and there for good: OMP_WAIT_POLICY
    (`pipeline.commands.shared`), as are the settings of Python's garbage collector (there too) and torch's
    number of threads (`pipeline.tune` that goes on from a checkpoint, workers of `pipeline.study`).
Network: huggingface_hub's constants HF_HUB_OFFLINE and HF_HUB_DISABLE_TELEMETRY
    (`quiet.transformers_offline`).
Import path: the current folder, while code of the user is imported or called (`user_code`).
Output: sys.stdout, sys.stderr, warnings and logging are silenced (`quiet.quiet`).
Temporary files: of a thread that writes an output they go beside it (`tempfile.gettempdir`, by
`pipeline.output`).
Hidden modules: libraries that coremltools would import for its other frontends (`converters.coreml.tools`).
Postponed modules: `POSTPONED`, while transformers, torch.export and ExecuTorch are imported.
Index of transformers' models: read once instead of twice while transformers is imported
    (`transformers_imports.one_index`).
Graph modules of torch.fx: their Python code is written when it is first called, while a model is captured
    (`lazy_graph_modules`).
Garbage collector: at rest during large imports (`lasting_imports`).
Random numbers: numpy's global sequence, from which a pass of coremltools draws (`own_random_numbers`).
Interpreter: how soon threads take turns, while two of them share a conversion (`quick_turns`).
Operators that torch.export decomposes: listed once while a model is captured or lowered
    (`operators_listed_once`), and overridden from memory (`remembered_overrides`).
Recurrent layers: torch.export computes their shapes alone, while a model is captured (`recurrent_shapes`).
Mamba and RWKV of transformers: take the parallel form of their scan while a model is captured
    (`parallel_scans`).
Attributes of torch.nn.Module: small buffers of integers are the numbers that they hold, where a capture fails
    without (`known_numbers`).
Distributions of torch: do not check their parameters while a model is captured (`unchecked_distributions`).
Masks of torch.nn.Transformer: not asked for their values while a model is captured (`masks_as_given`).
Passes of ExecuTorch: those that change nothing are left out, and delegates are not traced into, while a
    program is written (`converters.mps.edge_passes`).
Patched calls, all of coremltools 9.0 and in `converters.coreml`:
    TorchConverter._construct_compression_op     builds a weight from its own codes (`weights`)
    PassPipelineManager.apply_pipeline           without passes that find nothing; validates once (`passes`)
    Block._propagate_nonreplaceable_vars         looks for compressed weights where there are some (`passes`)
    noop_elimination._match_pattern              keeps the floor of x // 1, and at several sizes a pad that
                                                 is nothing at one of them (`pass_guards`)
    fuse_conv_scale._try_to_transform            keeps constants over a convolution (`pass_guards`)
    fuse_conv_bias._try_to_transform             negates a copy of a constant (`pass_guards`)
    fuse_pow2_sqrt._match_pattern                keeps sqrt(x^2) (`pass_guards`)
Operators of coremltools' frontend: those of recurrent layers, while a package is written
    (`converters.coreml.recurrent`).

coremltools keeps the program that it builds in globals (`BLOCK_STACK`, `SCOPE_STACK`, counters of names), so
only one thread at a time may use it: `exclusive`.
"""

import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

POSTPONED = (  # of which these libraries import functions that a conversion never calls; 2.5 s
    "torch._inductor.fx_passes.post_grad",  # executorch.exir: operators that change their arguments
    "networkx",  # torch._functorch: memory budgets of activation checkpointing
    "scipy.optimize",  # transformers.loss: matching of boxes
    "sklearn.metrics",  # transformers.generation: assisted decoding
    "torchao.prototype.safetensors.safetensors_support",  # transformers.quantizers
)

exclusive = threading.RLock()
_hiding = threading.RLock()
_lock = threading.RLock()
# what is in force -> (how to undo it, one entry for each user)
_changes: dict[Any, tuple[ExitStack, list[None]]] = {}


@contextmanager
def shared(name: Any, change: Callable[[], AbstractContextManager[None]]) -> Iterator[None]:
    """`change()` is in force inside, once for all that ask for it by this name at the same time."""
    with _lock:
        if name not in _changes:
            undo = ExitStack()
            undo.enter_context(change())
            _changes[name] = undo, []
        _changes[name][1].append(None)
    try:
        yield
    finally:
        with _lock:
            undo, users = _changes[name]
            users.pop()
            if not users:
                del _changes[name]
                undo.close()


@contextmanager
def replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    """`owner.name` is `replacement` inside. Threads that overlap must ask for equal replacements."""

    @contextmanager
    def change() -> Iterator[None]:
        before = vars(owner)[name]  # as it stands there: a staticmethod stays one
        setattr(owner, name, replacement)
        try:
            yield
        finally:
            setattr(owner, name, before)

    with shared((id(owner), name), change):
        yield


@contextmanager
def own_random_numbers() -> Iterator[None]:
    """What is drawn inside from numpy's global generator leaves the caller's sequence as it was."""
    import numpy as np

    state = np.random.get_state()
    try:
        yield
    finally:
        np.random.set_state(state)


def lasting_imports() -> AbstractContextManager[None]:
    """What is imported inside is not looked through for garbage meanwhile: half a million objects that
    stay."""
    return shared("lasting imports", _collector_at_rest)


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    ran = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if ran:
            gc.enable()


def quick_turns() -> AbstractContextManager[None]:
    """Threads take turns after 1 ms instead of 5: one that computes in short kernels waits for the
    interpreter after each of them."""
    return shared("quick turns", _turns_of_a_millisecond)


@contextmanager
def _turns_of_a_millisecond() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, 0.001))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def lazy_graph_modules() -> AbstractContextManager[None]:
    """The graphs that torch traces on its way from a module to a decomposed program get Python code only
    where they are called, which most never are: a seventh of a capture."""
    from torch.fx import _lazy_graph_module

    return replaced(_lazy_graph_module, "_use_lazy_graph_module_flag", True)


def operators_listed_once() -> AbstractContextManager[None]:
    """torch.export asks its dispatcher for all operators that decompose by themselves once for each of 27
    namespaces; inside, what was asked for at the start counts."""
    from torch._export import utils

    utils._materialize_cpp_cia_ops()
    return replaced(utils, "_materialize_cpp_cia_ops", lambda: None)


def masks_as_given() -> AbstractContextManager[None]:
    """torch.nn.Transformer, its encoder and its decoder ask whether a mask is the causal one, to take a
    faster way to the same values; a traced mask has no values to ask for. Inside, the caller's word counts,
    and a mask of which nothing was said is used as it is."""
    from torch.nn.modules import transformer

    return replaced(transformer, "_detect_is_causal_mask", _said_to_be_causal)


def _said_to_be_causal(mask: Any, is_causal: bool | None = None, size: int | None = None) -> bool:
    return is_causal is True


def unchecked_distributions() -> AbstractContextManager[None]:
    """torch.distributions checks its parameters by their values, which a traced tensor has not; inside, it
    takes them as they are."""
    from torch.distributions import Distribution

    return replaced(Distribution, "_validate_args", False)


# whose scans have a parallel form, which they take where torch compiles and does not export
SCANNING = tuple(
    f"transformers.models.{name}.modeling_{name}" for name in ("mamba", "falcon_mamba", "jamba", "zamba")
)


@contextmanager
def parallel_scans() -> Iterator[None]:
    """Mamba of transformers computes its scan in log2(steps) rounds over all steps at once, as it does where
    it is compiled, and not in a Python loop, whose 512 steps are thousands of operations in each layer."""
    with ExitStack() as changes:
        for module in [sys.modules[name] for name in SCANNING if name in sys.modules]:
            for name, answer in (("is_torchdynamo_compiling", _yes), ("is_torchdynamo_exporting", _no)):
                if hasattr(module, name):
                    changes.enter_context(replaced(module, name, answer))
        if _RWKV in sys.modules:
            changes.enter_context(
                replaced(sys.modules[_RWKV], "rwkv_linear_attention_cpu", _rwkv_in_parallel)
            )
        yield


_RWKV = "transformers.models.rwkv.modeling_rwkv"


def _rwkv_in_parallel(
    time_decay: Any, time_first: Any, key: Any, value: Any, state: Any = None, return_state: bool = False
) -> tuple[Any, None]:
    """As transformers' function, of a sequence without states: models are captured without a cache."""
    from .decayed_sums import decayed_average

    return decayed_average(time_decay, time_first, key, value), None


def _yes() -> bool:
    return True


def _no() -> bool:
    return False


@contextmanager
def hidden_modules(names: Iterable[str]) -> Iterator[None]:
    """An import of any of these fails inside, as if it were not installed. Other threads that hide modules
    wait; one that imports such a module meanwhile does not find it either."""
    absent: dict[str, Any] = dict.fromkeys(names)  # None: an import of it raises ImportError
    with _in_place_of(absent):
        yield


@contextmanager
def postponed_modules(names: Iterable[str] = POSTPONED) -> Iterator[None]:
    """Libraries that are imported inside get stand-ins for the functions of these modules, which import them
    when they are called, later. Modules that are imported already stay as they are."""
    with _in_place_of({name: _Postponed(name) for name in names if name not in sys.modules}):
        yield


@contextmanager
def _in_place_of(modules: Mapping[str, Any]) -> Iterator[None]:
    """What imports find by the names of `modules`; other threads that change the same wait."""
    with _hiding:
        before = {name: sys.modules[name] for name in modules if name in sys.modules}
        sys.modules.update(modules)
        try:
            yield
        finally:
            for name in modules:
                sys.modules.pop(name, None)
            sys.modules.update(before)


class _Postponed(ModuleType):
    """A module that is not imported yet: each of its names is a function that imports it and calls the real
    one."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *args, **kwargs: getattr(import_module(self.__name__), name)(*args, **kwargs)
