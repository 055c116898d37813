"""Builds the networks that validation/estimate/devices/latency.csv names, with random weights, as fused
modules, and converts them with plain coremltools in fp16: what `bench/latency.py --features` reads.

    python bench/latency_networks.py OUT_DIR [MODEL ...]    # OUT_DIR/MODEL-SHAPE.mlpackage; all that it names

The table names models as `timm:NAME` or `transformers:NAME`. timm needs torchvision, whose CPU build is not
always at hand: `install()` puts both into a folder of their own without their dependencies, and
`import_timm()` declares the compiled operators that torchvision expects, which none of these networks calls.
"""

import csv
import functools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from cidermill.validation.estimate.devices import DATA

SITE = Path(tempfile.gettempdir()) / "cidermill-latency-networks"
PACKAGES = ("torchvision==0.28.0", "timm==1.0.31")


def install():
    if not (SITE / "timm").exists():
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(SITE)]
        subprocess.run([*pip, *PACKAGES], check=True)


@functools.cache
def import_timm():
    install()
    sys.path.insert(0, str(SITE))
    sources = "\n".join(path.read_text() for path in (SITE / "torchvision").rglob("*.py"))
    library = torch.library.Library("torchvision", "DEF")
    for name in set(re.findall(r"torchvision::([a-z0-9_]+)", sources)):
        library.define(f"{name}(Tensor a) -> Tensor")
    import timm

    timm.declared_operators = library  # they live as long as this object does
    return timm


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x).logits


def build(model_id, shape):
    """`timm:resnet50`, (1, 3, 224, 224) -> (module in eval mode, example input)"""
    library, name = model_id.split(":")
    torch.manual_seed(0)
    if library == "timm":
        timm = import_timm()
        from timm.utils.model import reparameterize_model

        size = {"img_size": shape[-1]} if name.startswith(("vit_", "deit_")) else {}
        model = reparameterize_model(timm.create_model(name, pretrained=False, **size).eval())
        return model.eval(), torch.rand(*shape)
    import transformers as T

    if name == "distilbert-base":
        model = T.DistilBertForSequenceClassification(T.DistilBertConfig())
        return Logits(model).eval(), torch.randint(0, 1000, shape).int()
    raise KeyError(model_id)


def convert(model_id, shape, folder):
    """-> path of the fp16 .mlpackage (kept from an earlier call)"""
    path = Path(folder) / f"{model_id.split(':')[1]}-{'x'.join(map(str, shape))}.mlpackage"
    if path.exists():
        return path
    import coremltools as ct

    model, example = build(model_id, shape)
    with torch.no_grad():
        program = torch.export.export(model, (example,), strict=False).run_decompositions()
        mlmodel = ct.convert(program, minimum_deployment_target=ct.target.iOS17, skip_model_load=True)
    mlmodel.save(str(path))
    return path


def main(folder, *models):
    Path(folder).mkdir(parents=True, exist_ok=True)
    with (DATA / "latency.csv").open() as stream:
        networks = dict.fromkeys((row["model"], row["shape"]) for row in csv.DictReader(stream))
    for model_id, shape in networks:
        if not models or model_id in models:
            print(convert(model_id, tuple(map(int, shape.split("x"))), folder), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
