"""`--image`, `--image-output` and `--io`, as options, and a model enter; what an app gives and gets instead
of the model's own tensors leaves, or why it cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..converters.coreml.deployment import generation
from ..models.errors import UserError
from ..models.inputs import shape_text
from ..models.pictures import DEPTH, LARGEST, AppInputs, Picture
from .picture_options import AUTO, LAYOUTS, PRESETS, PictureOption, parse_image
from .targets import find_target, refuse
from .words import PICTURE

if TYPE_CHECKING:
    from pathlib import Path

    from ..models.capture import Captured
    from ..models.picture_config import Preparation
    from ..models.source import Source, TensorSpec
    from ..validation.runner import Runner
    from .plan import Plan

HALF_PRECISION = 16  # of iOS, the first whose models take and give float16
NORMALISED = 1.0  # an output that never goes beyond shows as black


def given_by_apps(plan: Plan, source: Source) -> AppInputs:
    """What an app gives for the model's inputs. Raises UserError for pictures that an input cannot take."""
    half = plan.io == "float16"
    named = {new: old for old, new in plan.names}
    pictures = {}
    for option in plan.images:
        picture = picture_for(option, source, named, half)
        if picture.name in pictures:
            raise UserError(f"--image names the input {picture.name!r} twice.", "Give each input once.")
        pictures[picture.name] = picture
    return AppInputs(pictures, frozenset(spec.name for spec in source.inputs) if half else frozenset())


def picture_for(
    option: PictureOption, source: Source, named: Mapping[str, str], half: bool = False
) -> Picture:
    """One option for the input that it names. named: an artifact's own name -> the model's; half: grey in
    half precision. Raises UserError."""
    spec = _find(option, "--image", source.inputs, "input", named)
    if option.preset == AUTO:
        option = _from_folder(option, source)
    _check_tensor(option, "--image", spec, "input")
    channels, last = _layout(option, "--image", spec)
    scale, bias = _preparation(option, channels)
    channels = "F" if half and channels == "L" else channels
    return Picture(spec.name, channels, scale, bias, last, _told(option, channels))


def given_to_artifact(
    runner: Runner, source: Source, options: Sequence[PictureOption]
) -> tuple[AppInputs, tuple[str, ...]]:
    """What any artifact takes for the model's inputs, which are in the same order or of the same names, and
    what is to be said of that. Of a picture that no option names, an artifact of ours says itself how it is
    prepared; another is compared as if the model took its pixels. Raises UserError."""
    owns = {value.name: spec.name for value, spec in _side_by_side(runner, source)}
    of_artifact = {owns[name]: feature.channels for name, feature in runner.features.items() if name in owns}
    said = {} if runner.package is None else runner.package.metadata
    asked = {_find(option, "--image", source.inputs, "input", owns).name: option for option in options}
    pictures, warnings = {}, []
    for name, own in owns.items():
        channels, text = of_artifact.get(own, ""), said.get(f"{PICTURE}{name}", "")
        if not channels and own not in asked:
            continue
        if own not in asked and not text:
            warnings.append(
                f"{name} takes pictures, and nothing says how the model wants them: it was given pixels, 0 to"
                " 255. Say it with --image."
            )
        option = asked.get(own) or parse_image(f"{own}:{text}".rstrip(":"))
        picture = picture_for(replace(option, channels=channels or option.channels), source, owns)
        pictures[own] = picture
    halves = (owns[value.name] for value in runner.inputs if value.dtype == "float16" and value.name in owns)
    return AppInputs(pictures, frozenset(halves)), tuple(warnings)


def _side_by_side(runner: Runner, source: Source) -> list[tuple[Any, TensorSpec]]:
    """Inputs of the artifact and those of the model that they are."""
    by_name = {spec.name: spec for spec in source.inputs}
    if set(by_name) == {value.name for value in runner.inputs}:
        return [(value, by_name[value.name]) for value in runner.inputs]
    return list(zip(runner.inputs, source.inputs))


def gotten_by_apps(plan: Plan, captured: Captured) -> dict[str, Picture]:
    """Outputs that are pictures, by the model's names. Raises UserError for what no picture can hold."""
    named, half = {new: old for old, new in plan.names}, plan.io == "float16"
    pictures = {}
    for option in plan.image_outputs:
        spec = _find(option, "--image-output", captured.outputs, "output", named)
        _check_tensor(option, "--image-output", spec, "output")
        channels, last = _layout(option, "--image-output", spec)
        if last:
            raise UserError(
                f"--image-output {option.text}: output {spec.name!r} is {shape_text(spec.shape)}, with its"
                " channels last; a picture is 1xCxHxW.",
                "Let the model return output.permute(0, 3, 1, 2).",
            )
        pictures[spec.name] = Picture(spec.name, "F" if half and channels == "L" else channels)
    return pictures


def with_gotten_pictures(plan: Plan, captured: Captured) -> Captured:
    """A captured model with outputs as an app gets them, and what is to be said of pictures on both sides.
    Raises UserError."""
    if not plan.images and not plan.image_outputs and plan.io == "float32":
        return captured
    from ..models.pictured import as_apps_get

    pictures, source = gotten_by_apps(plan, captured), captured.source
    said = (*_preparation_warnings(plan, captured), *_range_warnings(pictures, captured))
    captured = replace(captured, source=replace(source, warnings=(*source.warnings, *said)))
    return as_apps_get(captured, pictures, plan.io == "float16")


def check_io(io: str, targets: Sequence[str], deployment_target: str) -> None:
    """Raises UserError where an app cannot give half precision to any target."""
    if io == "float32":
        return
    refuse("io", tuple(targets), io)
    packages = any(find_target(name).holds_pictures for name in targets)
    if packages and generation(deployment_target) < HALF_PRECISION:
        raise UserError(
            f"--io float16 needs iOS16, and --deployment-target is {deployment_target}.",
            "Raise --deployment-target to iOS16, or leave --io out.",
        )


def check_preparation(plan: Plan) -> None:
    """Raises UserError where `auto` finds no configuration of an image processor, or odd numbers."""
    for option in plan.images:
        if option.preset == AUTO and plan.model.exists():
            _found(option, plan.model, (plan.model / "config.json").is_file())


def _preparation_warnings(plan: Plan, captured: Captured) -> tuple[str, ...]:
    """What `auto` found that only an app can do, one sentence for each picture."""
    if not any(option.preset == AUTO for option in plan.images):
        return ()
    from ..models.picture_config import left_to_apps, read_picture_config

    steps = left_to_apps(read_picture_config(captured.source.path))
    shapes = {spec.name: spec.shape for spec in captured.inputs if spec.name in captured.pictures}
    return tuple(
        f"{name}: left to the app, as the folder's image processor has it: {'; '.join(steps)}. The artifact"
        f" takes pictures of {shape[3]}x{shape[2]} pixels."
        for name, shape in shapes.items()
        if steps
    )


def _range_warnings(pictures: Mapping[str, Picture], captured: Captured) -> tuple[str, ...]:
    """Of outputs whose numbers, on the samples, are no pixels. captured: with what the source answers."""
    warnings = []
    for name in pictures:
        arrays = [answer[name] for answer in captured.reference]
        low, high = min(array.min() for array in arrays), max(array.max() for array in arrays)
        if 0 <= low and high <= NORMALISED or low < 0 or high > LARGEST:
            warnings.append(
                f"{name}: the model gives numbers from {low:.4g} to {high:.4g} on the samples, and a picture"
                " holds whole ones from 0 to 255: let the model return them in that range."
            )
    return tuple(warnings)


def _find(
    option: PictureOption, flag: str, specs: Sequence[TensorSpec], what: str, named: Mapping[str, str]
) -> TensorSpec:
    name = option.name if any(spec.name == option.name for spec in specs) else named.get(option.name)
    spec = next((spec for spec in specs if spec.name == name), None)
    if spec is None:
        names = ", ".join(spec.name for spec in specs)
        raise UserError(
            f"{flag} {option.text}: the model has no {what} {option.name!r}.", f"Its {what}s are {names}."
        )
    return spec


def _check_tensor(option: PictureOption, flag: str, spec: TensorSpec, what: str) -> None:
    title = f"{flag} {option.text}: {what} {spec.name!r} is {shape_text(spec.shape)} {spec.dtype}"
    if len(spec.shape) != 4:
        raise UserError(
            f"{title}, of {len(spec.shape)} dimensions; a picture has 4: 1xCxHxW, or 1xHxWxC.",
            f"Leave {flag} out, or reshape in the model.",
        )
    if not spec.dtype.startswith("float"):
        raise UserError(
            f"{title}; pixels are given as floating-point numbers.",
            f"Leave {flag} out, or take float32 in the model.",
        )
    if spec.shape[0] != 1:
        size = "x".join(map(str, spec.shape[1:]))
        raise UserError(
            f"{title}, a batch of {spec.shape[0]}; Core ML has no batches of pictures.",
            f"Give --input {spec.name}:1x{size}; an app predicts several pictures one by one, or with"
            " predictions(from:)."
            if what == "input"
            else "Convert the model for a batch of 1.",
        )


def _layout(option: PictureOption, flag: str, spec: TensorSpec) -> tuple[str, bool]:
    """-> (order of the channels, whether they are last)"""
    allowed = (DEPTH[option.channels],) if option.channels else (3, 1)
    if not option.channels and _of_colours(option):
        allowed = (3,)
    for axis in (1, 3):
        if (depth := spec.shape[axis]) in allowed:
            return option.channels or {3: "RGB", 1: "L"}[depth], axis == 3
    layout = next((word for word, channels in LAYOUTS.items() if channels == option.channels), "")
    raise UserError(
        f"{flag} {option.text}: {spec.name!r} is {shape_text(spec.shape)}, with {spec.shape[1]} channels;"
        f" {layout or 'a picture'} has {' or '.join(map(str, allowed))}.",
        "Colours are rgb or bgr, 3 channels; gray is 1. Other tensors stay arrays: leave it out.",
    )


def _of_colours(option: PictureOption) -> bool:
    """Whether it has numbers for each of three channels."""
    given = (*(option.numbers or {}).values(), *PRESETS.get(option.preset, ()))
    return any(len(numbers) == 3 for numbers in given)


def _preparation(option: PictureOption, channels: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """-> (scale, bias) of pixels from 0 to 255, one number or one for each channel"""
    numbers = option.numbers or {}
    if not option.preset and not numbers.keys() & {"mean", "std"}:
        return numbers.get("scale", (1.0,)), numbers.get("bias", (0.0,))
    mean, std = numbers.get("mean", (0.0,)), numbers.get("std", (1.0,))
    if option.preset in PRESETS:
        # published in the order of red, green and blue
        mean, std = (part[::-1] if channels == "BGR" else part for part in PRESETS[option.preset])
    count = max(len(mean), len(std))
    mean, std = (part * count if len(part) == 1 else part for part in (mean, std))
    scale = tuple(1 / (LARGEST * deviation) for deviation in std)
    bias = tuple(0.0 - middle / deviation for middle, deviation in zip(mean, std))
    return _shortened(scale), _shortened(bias)


def _shortened(numbers: tuple[float, ...]) -> tuple[float, ...]:
    """One number where all are equal."""
    return numbers[:1] if len(set(numbers)) == 1 else numbers


def _from_folder(option: PictureOption, source: Source) -> PictureOption:
    """`auto` as the numbers that a Hugging Face folder has for it."""
    found = _found(option, source.path, source.format == "hugging-face")
    channels = option.channels or ("BGR" if found.flipped else "")
    if option.channels == "RGB" and found.flipped:
        raise UserError(
            f"--image {option.text}: the folder's model takes blue, green, red (do_flip_channel_order).",
            "Leave rgb out, or write bgr.",
        )
    return replace(option, preset="", channels=channels, numbers=found.numbers)


def _found(option: PictureOption, path: Path, is_folder: bool) -> Preparation:
    """is_folder: of a Hugging Face model."""
    from ..models.picture_config import preparation, read_picture_config

    if not is_folder:
        raise UserError(
            f"--image {option.text}: auto reads the preprocessor_config.json of a Hugging Face folder, and"
            f" {path.name} is none.",
            f"Give one of {', '.join(PRESETS)}, or mean= and std=.",
        )
    return preparation(read_picture_config(path))


def _told(option: PictureOption, channels: str) -> str:
    """The preparation as `--image` takes it after the name: of `auto`, its numbers."""
    layout = next((word for word, order in LAYOUTS.items() if order == channels), "gray")
    numbers = (f"{key}={','.join(map(repr, values))}" for key, values in (option.numbers or {}).items())
    return ":".join([layout, *filter(None, [option.preset]), *numbers])
