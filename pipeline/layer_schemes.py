"""`--schemes`: a list of recipes enters; what single layers may be given, when the recipe is chosen,
leaves."""

from ..models.errors import UserError
from ..quantization.recipe import parse_recipe
from ..quantization.schemes import Recipe
from .targets import find_target

DEFAULT_SCHEMES = ("int8", "int4", "palettize4", "palettize2", "float16")
HINT = f"Choose among schemes such as {','.join(DEFAULT_SCHEMES)}."


def parse_schemes(text: str) -> tuple[Recipe, ...]:
    """ "int8,palettize4" -> Recipes, each once. Raises UserError."""
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UserError(
            f"--schemes {text!r}: a scheme is missing; it is a list of recipes with a comma between them.",
            HINT,
        )
    schemes = tuple(dict.fromkeys(map(parse_recipe, words)))
    for scheme in schemes:
        if _beyond_a_layer(scheme):
            raise UserError(f"--schemes: {scheme.name} cannot be chosen for single layers.", HINT)
    return schemes


def default_schemes(targets: tuple[str, ...], deployment_target: str) -> tuple[Recipe, ...]:
    """As far as the targets hold them."""
    schemes = map(parse_recipe, DEFAULT_SCHEMES)
    return tuple(scheme for scheme in schemes if _is_held(scheme, targets, deployment_target))


def check_held(recipe: Recipe, targets: tuple[str, ...], deployment_target: str) -> None:
    """Refuse a recipe that the deployment target cannot hold, and a deployment target that is none."""
    for target in targets:
        find_target(target).check_recipe(recipe, deployment_target)


def _is_held(recipe: Recipe, targets: tuple[str, ...], deployment_target: str) -> bool:
    try:
        check_held(recipe, targets, deployment_target)
    except UserError:
        return False
    return True


def _beyond_a_layer(recipe: Recipe) -> bool:
    """Whether a recipe does more than store one layer's weight: AWQ rescales other tensors too, a global
    threshold is of all layers."""
    everywhere = recipe.overrides or recipe.activations is not None or recipe.compute == "float32"
    return bool(
        everywhere
        or getattr(recipe.values, "method", "") == "awq"
        or getattr(recipe.prune, "kind", "") == "global"
    )
