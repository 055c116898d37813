"""The table of options: what the commands that make, judge and study artifacts can be asked for.

The command line, `cidermill.toml` and the keyword arguments of Python follow from it.
"""

import math
from collections.abc import Iterable
from pathlib import Path

from ..converters.coreml.deployment import target_named
from ..models.errors import UserError
from ..models.inputs import parse_inputs
from ..quantization.recipe_file import load_recipe
from .device_choice import choose_devices
from .labels import parse_labels
from .layer_schemes import parse_schemes
from .metadata import parse_metadata
from .names import parse_names, parse_parts
from .option import Option
from .picture_options import parse_image_outputs, parse_images
from .quantities import parse_budget, parse_latency_limits, parse_size
from .states import STATE
from .suppression import parse_suppression
from .targets import DEFAULT_TARGET, TARGETS

COMPUTE_UNITS = ("all", "cpu_and_ne", "cpu_and_gpu", "cpu_only")


def _targets(names: tuple[str, ...]) -> tuple[str, ...]:
    """Each once, one at least."""
    if not names:
        raise UserError("target names nothing to write.", f"The targets are {' and '.join(TARGETS)}.")
    return tuple(dict.fromkeys(names))


def _min_psnr(decibels: float) -> float:
    if not 0 < decibels < math.inf:
        raise UserError(
            f"--min-psnr {decibels} is not a positive number of decibels.", "30 is a common budget."
        )
    return decibels


def _tolerance(decibels: float) -> float:
    if not 0 < decibels < math.inf:
        raise UserError(
            f"--tolerance {decibels} is not a positive number of decibels.",
            "Leave it out to take 40 for float16 compute, 60 for float32.",
        )
    return decibels


def _min_ane_share(share: float) -> float:
    if not 0 < share <= 1:
        raise UserError(
            f"--min-ane-share {share} is no share.", "Write a number above 0 and up to 1, such as 0.95."
        )
    return share


INPUT = Option(
    "input",
    "inputs",
    "Name, shape and type of an input, where the file does not say. Core ML: sizes to choose from as 1x32,64"
    " (the first is the usual one) or a range, 1x1..512@128. Repeatable.",
    metavar="NAME:1x3x224x224[:DTYPE]",
    repeatable=True,
    parse=parse_inputs,
)
SAMPLES = Option(
    "samples",
    "samples",
    "Real inputs for validation; without them random ones are drawn from a fixed seed.",
    metavar="FILE.npz|MODULE:FUNCTION",
    objects=(Iterable,),
)
MODEL_CLASS = Option(
    "model-class",
    "model_class",
    "Builds the module that a state dict or a safetensors file belongs to.",
    metavar="PACKAGE.MODULE:FACTORY",
)
TRUST_PICKLE = Option(
    "trust-pickle",
    "trust_pickle",
    "Allow a pickled module to import and run the code that it names.",
    bool,
    default=False,
)
DEVICE = Option(
    "device",
    "devices",
    'Device or chip to estimate for, as "iPhone 15 Pro" or A14, or all. Repeatable; the first is the one that'
    " is placed on.",
    metavar="NAME",
    repeatable=True,
    parse=choose_devices,
)
CALIBRATION = Option(
    "calibration",
    "calibration",
    "Correct the estimates for its chip by a file of `cidermill calibrate`. A Mac finds its own by itself.",
    Path,
    metavar="FILE",
)
MEASURE = Option(
    "measure",
    "measure",
    "On macOS, time the artifact on this machine as well; elsewhere nothing happens.",
    bool,
    default=True,
    negatable=True,
)
CACHE = Option(
    "cache",
    "cache",
    "Take what an equal conversion made before from the cache (see `cidermill cache`).",
    bool,
    default=True,
    negatable=True,
)
IMAGE = Option(
    "image",
    "images",
    "An input that takes pictures, pixels of 0 to 255: the model is given pixel*scale+bias, or"
    " (pixel/255-mean)/std of each channel. unit: 0..1; half: -1..1; auto: as the folder's"
    " preprocessor_config.json has it. --samples gives pictures then. Repeatable.",
    metavar="NAME[:rgb|bgr|gray][:unit|half|imagenet|clip|auto][:scale=S][:bias=B][:mean=M,M,M][:std=S,S,S]",
    repeatable=True,
    parse=parse_images,
)
CONVERT = (
    Option(
        "target",
        "targets",
        "What to write. Repeatable.",
        choices=TARGETS,
        default=(DEFAULT_TARGET,),
        repeatable=True,
        parse=_targets,
    ),
    Option(
        "quant",
        "recipe",
        "How to store the weights: float32, float16, intN[:blockN...], palettizeN[:groupN...],"
        " pruneP[:global...], w8a8, joined by +; layers of their own after a semicolon, as in 'int4;"
        " lm_head*=int8'; or a .toml file. The README lists every option.",
        metavar="RECIPE",
        default="float16",
        parse=load_recipe,
    ),
    Option(
        "palettize",
        "palettize",
        "Add a lookup table of 2^BITS entries per weight: 1, 2, 3, 4, 6 or 8.",
        int,
        metavar="BITS",
    ),
    Option(
        "prune",
        "prune",
        "Add magnitude pruning of this fraction (0 to 1) of each weight.",
        float,
        metavar="FRACTION",
    ),
    INPUT,
    SAMPLES,
    Option(
        "deployment-target",
        "deployment_target",
        "Oldest system that must run the Core ML artifact, as iOS17, macOS15, watchOS11 or visionOS2.",
        metavar="OS",
        default="iOS18",
        parse=target_named,
    ),
    DEVICE,
    CALIBRATION,
    MEASURE,
    MODEL_CLASS,
    TRUST_PICKLE,
    Option(
        "min-psnr",
        "min_psnr",
        "Budget: fail (exit 1) where an output of the compressed model is further than this from the source.",
        float,
        metavar="DB",
        parse=_min_psnr,
    ),
    Option(
        "max-size",
        "max_size_bytes",
        "Fail where an artifact is larger than 12MB, 800kB, ...",
        metavar="SIZE",
        parse=parse_size,
    ),
    Option(
        "max-latency",
        "max_latency",
        "Fail where DEVICE is estimated to take longer (a time measured here on its chip comes first)."
        " Repeatable.",
        metavar="DEVICE=TIME",
        repeatable=True,
        parse=parse_latency_limits,
    ),
    Option(
        "min-ane-share",
        "min_ane_share",
        "Fail where less of a Core ML artifact's estimated time is on the Neural Engine (0 to 1), on the"
        " first device.",
        float,
        metavar="SHARE",
        parse=_min_ane_share,
    ),
    Option(
        "budget",
        "budget",
        "Choose a scheme for each layer: the least error within 12MB or 800kB for each artifact, or 4.5bpw"
        " (bits per weight).",
        metavar="SIZE|BPW",
        parse=parse_budget,
    ),
    Option(
        "schemes",
        "schemes",
        "What to choose from, with --budget or --min-psnr (then the smallest that is as near to the source)."
        "  [default: int8,int4,palettize4,palettize2,float16]",
        metavar="LIST",
        parse=parse_schemes,
    ),
    Option("sensitivity", "sensitivity", "The sensitivity.json of an earlier run.", Path, metavar="FILE"),
    Option(
        "part",
        "parts",
        "Parts of a Hugging Face model, each of which becomes an artifact of its own: encoder,decoder of"
        " Whisper and T5, text,image of CLIP and SigLIP. Repeatable.",
        metavar="LIST",
        repeatable=True,
        parse=parse_parts,
    ),
    Option(
        "dry-run",
        "dry_run",
        "Print the size, time and memory to expect, for --quant or for each of --schemes; write nothing.",
        bool,
        default=False,
    ),
    Option(
        "name",
        "names",
        "Another name for an input or an output of the artifact; --input and --samples keep the model's own."
        " Repeatable.",
        metavar="OLD=NEW",
        repeatable=True,
        table=True,
        parse=parse_names,
    ),
    Option(
        "metadata",
        "metadata",
        "What a Core ML artifact says of itself: author, license, description, version, a KEY of your own, or"
        " describe.NAME for an input or output. Repeatable.",
        metavar="KEY=VALUE",
        repeatable=True,
        table=True,
        parse=parse_metadata,
    ),
    Option(
        "labels",
        "labels",
        "Make a classifier of it: a file with a line for each class, or auto for the id2label of a Hugging"
        " Face folder; a softmax is added where OUTPUT gives logits.",
        metavar="FILE|auto[:OUTPUT]",
        parse=parse_labels,
        objects=(list, tuple),
    ),
    Option(
        "nms",
        "suppression",
        "End in non-maximum suppression, as Vision expects detectors: outputs with boxes (centre x, centre y,"
        " width, height, of 0 to 1) and with a score for each class; --labels names the classes.",
        metavar="BOXES,SCORES[:iou=0.45][:confidence=0.25]",
        parse=parse_suppression,
    ),
    STATE,
    IMAGE,
    Option(
        "image-output",
        "image_outputs",
        "An output that gives pictures; its values are pixels of 0 to 255. Repeatable.",
        metavar="NAME[:rgb|bgr|gray]",
        repeatable=True,
        parse=parse_image_outputs,
    ),
    Option(
        "io",
        "io",
        "The type of floating-point inputs and outputs; float16 needs iOS16, and makes gray pictures half"
        " precision, too.",
        choices=("float32", "float16"),
        default="float32",
    ),
    Option("out", "out", "Where the results go.  [default: NAME-artifacts]", Path, metavar="DIR"),
    Option(
        "force",
        "force",
        "Write into a folder that holds files of others (they are kept).",
        bool,
        default=False,
    ),
    CACHE,
)
VALIDATE = (
    Option("against", "against", "The source model to compare with.", Path, metavar="MODEL", required=True),
    INPUT,
    SAMPLES,
    MODEL_CLASS,
    TRUST_PICKLE,
    IMAGE,
    Option(
        "part",
        "part",
        "The part of a Hugging Face model that ARTIFACT holds: encoder, decoder, text, image or audio.",
        metavar="NAME",
    ),
    Option(
        "tolerance",
        "tolerance",
        "Least PSNR to pass.  [default: 40 for float16 compute, 60 for float32]",
        float,
        metavar="DB",
        parse=_tolerance,
    ),
)
INSPECT = (
    DEVICE,
    CALIBRATION,
    MEASURE,
    Option(
        "compute-units",
        "compute_units",
        "The units that the app allows.",
        choices=COMPUTE_UNITS,
        default="all",
    ),
)
STUDY = (
    Option(
        "recipes",
        "recipes",
        "What to try: quick (8 recipes), standard (24), thorough (60), a .txt file with one a line, a .toml"
        " file, or recipes with commas between them. --list-recipes prints them.  [default: quick; with"
        " --trials, any]",
        metavar="PRESET|FILE|LIST",
    ),
    Option(
        "target",
        "targets",
        "Repeatable.",
        choices=TARGETS,
        default=(DEFAULT_TARGET,),
        repeatable=True,
        parse=_targets,
    ),
    SAMPLES,
    Option(
        "eval",
        "evaluate",
        "Your own figure: evaluate(run) -> number, where run({name: array}) gives the saved artifact's"
        " outputs.",
        metavar="MODULE:FUNCTION",
    ),
    Option("goal", "goal", "Of --eval.", choices=("maximize", "minimize"), default="maximize"),
    DEVICE,
    Option(
        "out",
        "out",
        "Where the study is kept; one that is there goes on.  [default: NAME-study]",
        Path,
        metavar="DIR",
    ),
    Option(
        "trials",
        "trials",
        "Search instead: let Optuna propose N recipes, for size, error and latency at once, under"
        " --constraint.",
        int,
        metavar="N",
    ),
    Option(
        "constraint",
        "constraints",
        'What a result must keep: "size<=12MB, psnr>=30, ane_share>=0.95, latency[iPhone 15 Pro]<=2ms,'
        ' metric>=0.9". Repeatable.',
        metavar="TEXT",
        repeatable=True,
    ),
    Option("seed", "seed", "Of the search.", int, default=0),
    Option("batch", "batch", "Trials that the search proposes at once.", int, metavar="K", default=4),
    Option(
        "storage",
        "storage",
        "Optuna's storage, such as sqlite:///study.db.  [default: a journal in the study's folder]",
        metavar="URL",
    ),
    Option(
        "workers",
        "workers",
        "Processes.  [default: one for each core, as far as the memory goes]",
        int,
        metavar="N",
        default=0,
        shows_default=False,
    ),
    Option(
        "cluster",
        "cluster",
        "Run the trials on this Dask cluster; its workers must be able to read the model's path.",
        metavar="ADDRESS",
    ),
    Option("retry", "retry", "Try the trials again that failed.", bool),
    Option(
        "sensitivity",
        "sensitivity",
        "Measure each layer alone, for the heatmap of study.html.  [default: where it takes less than a"
        " minute]",
        bool,
        negatable=True,
    ),
    INPUT,
    Option(
        "deployment-target",
        "deployment_target",
        "Oldest system that must run the Core ML artifacts.",
        metavar="OS",
        default="iOS18",
        parse=target_named,
    ),
    MODEL_CLASS,
    TRUST_PICKLE,
    CACHE,
)
TUNE = (
    Option(
        "recipe",
        "recipe",
        "How the weights will be stored: what `convert --quant` takes, or a .toml file.",
        metavar="RECIPE",
        required=True,
        parse=load_recipe,
    ),
    Option(
        "data",
        "data",
        "Yields inputs (dicts, tuples, batches). No labels are needed.",
        metavar="MODULE:FUNCTION|FILE.npz",
        required=True,
    ),
    Option("out", "out", "Where the tuned program goes.  [default: NAME-tuned.pt2]", Path, metavar="FILE"),
    Option("steps", "steps", "Updates of the weights.", int, default=200),
    Option("lr", "rate", "Adam's learning rate, falling to zero over the steps.", float, default=1e-4),
    Option(
        "batch-accumulation",
        "accumulation",
        "Samples for each step.",
        int,
        metavar="K",
        default=8,
    ),
    Option(
        "loss",
        "loss",
        "soft: divergence of softened probabilities; mse: of the outputs; auto: soft for outputs that look"
        " like logits.",
        choices=("auto", "soft", "mse"),
        default="auto",
    ),
    Option(
        "refresh",
        "refresh",
        "Fit scales and masks anew every K steps; 0: never.",
        int,
        metavar="K",
        default=10,
    ),
    Option("seed", "seed", "Of the order of the samples. Equal seeds give equal bits.", int, default=0),
    Option("checkpoint", "checkpoint", "Save the training here on the way.", Path, metavar="DIR"),
    Option(
        "checkpoint-every",
        "every",
        "Steps between checkpoints, at least.",
        int,
        metavar="N",
        default=50,
    ),
    Option(
        "resume",
        "resume",
        "Go on from the checkpoint in DIR; the result is the one of a run without a stop.",
        bool,
        default=False,
    ),
    INPUT,
    MODEL_CLASS,
    TRUST_PICKLE,
)
OPTIONS = {  # of each command, in the order of its --help
    "convert": CONVERT,
    "validate": VALIDATE,
    "inspect": INSPECT,
    "study": STUDY,
    "tune": TUNE,
}
