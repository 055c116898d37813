"""Studies to read: written by hand, line by line, as the journal's format says; and one whose trials were
really converted."""

import json
import multiprocessing
import os
import random
import resource
import signal
import sys
import zipfile

import msgspec
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from cidermill.pipeline.commands.cli import convert, main
from cidermill.pipeline.study.pictures import pictures_of
from cidermill.pipeline.study.records import StudyHeader, StudyRow
from cidermill.validation import open_runner

HOSTILE = (
    '</script><script>document.title="pwned"</script><img src=x onerror=alert(1)>"\'&%{x} $a$'
    " <b>b</b>\x1b[31m"
)
RECIPES = (
    "float16",
    "int8",
    "int6",
    "int4",
    "int4:block16",
    "palettize4",
    "palettize2",
    "palettize4:group16",
    "prune50",
    "w8a8",
    "int4; a*=int8",
)


def make_row(trial, model="net", target="coreml", recipe="int8", **changes):
    """A finished trial that passed."""
    devices = [("iPhone 15 Pro", "A17 Pro", 2.0), ("iPhone 12", "A14", 5.0)]
    latency = [
        {"device": name, "chip": chip, "ms": ms, "low_ms": ms / 2, "high_ms": ms * 2, "source": "estimate"}
        for name, chip, ms in devices
    ]
    return {
        "trial": trial,
        "model": model,
        "target": target,
        "recipe": recipe,
        "state": "done",
        "reason": "",
        "verdict": "pass",
        "size_bytes": 12_000_000,
        "bits_per_weight": 8.02,
        "psnr_db": 38.2,
        "cosine": 0.9999,
        "conversion_psnr_db": 61.0,
        "metric": None,
        "ane_share": 0.97,
        "latency": latency,
        "seconds": 4.2,
        "peak_rss_bytes": 1_000_000,
        "report": f"trials/{trial:03d}/report.html",
        "pictures": None,
        **changes,
    }


def make_failed(
    trial,
    model="net",
    target="coreml",
    recipe="int4:gptq",
    reason="it needs samples\nGive them with --samples.",
):
    return {
        "trial": trial,
        "model": model,
        "target": target,
        "recipe": recipe,
        "state": "failed",
        "reason": reason,
        "verdict": None,
        "seconds": 0.3,
        "peak_rss_bytes": 1,
        "report": None,
        "pictures": None,
    }


def make_header(models=("net",), **changes):
    paths = enumerate(models)
    listed = [
        {"name": name, "path": f"models/{index}.pt", "sha256": f"{index:02d}" * 32, "parameters": 3_000_000}
        for index, name in paths
    ]
    header = {
        "schema": "cidermill.study/1",
        "version": "0.1.0",
        "models": listed,
        "targets": ["coreml"],
        "devices": ["iPhone 15 Pro", "iPhone 12"],
        "eval": None,
        "goal": "maximize",
        "samples": {"kind": "real", "count": 8, "seed": 0},
        "constraints": [],
        "recipes": list(RECIPES),
    }
    return {**header, **changes}


def write_journal(folder, rows, header=None):
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(record) for record in (header or make_header(), *rows)]
    (folder / "study.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return folder


def write_report(folder, trial, target, weights):
    """Beside the trial's report.html; weights: (name, bits, SNR or None)."""
    entries = [
        {
            "name": name,
            "requested": "int8",
            "realised": f"int{round(bits)}",
            "bits_per_weight": bits,
            "reason": "",
            "snr_db": snr,
        }
        for name, bits, snr in weights
    ]
    report = folder / "trials" / f"{trial:03d}" / "report.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(
        json.dumps(
            {
                "source": {"sha256": "ab" * 32},
                "artifacts": [{"target": target, "compression": {"weights": entries}}],
            }
        )
    )


@pytest.fixture
def journals():
    """The makers above, for tests: they cannot import from here."""

    class Journals:
        row, failed, header, write, report = map(
            staticmethod, (make_row, make_failed, make_header, write_journal, write_report)
        )
        hostile = HOSTILE

        @staticmethod
        def records(rows):
            """As `load_study` gives them."""
            return msgspec.convert(rows, list[StudyRow])

        @staticmethod
        def header_record(header):
            return msgspec.convert(header, StudyHeader)

        @staticmethod
        def many(folder, models=("net",), trials=60):
            """A random study, the same each time: about one trial in ten fails, one in ten has a failing
            verdict."""
            rng, rows = random.Random(0), []
            for model in models:
                for index in range(trials):
                    number, recipe = len(rows), RECIPES[index % len(RECIPES)]
                    if rng.random() < 0.1:
                        rows.append(make_failed(number, model, recipe=recipe))
                        continue
                    figures = {
                        "size_bytes": rng.randrange(10**5, 10**7),
                        "psnr_db": rng.uniform(5, 70),
                        "cosine": rng.random(),
                    }
                    rows.append(
                        make_row(
                            number,
                            model,
                            recipe=recipe,
                            verdict="fail" if rng.random() < 0.1 else "pass",
                            **figures,
                        )
                    )
                    write_report(
                        folder,
                        number,
                        "coreml",
                        [(f"{model}.layer.{layer}.weight", 4.0, rng.uniform(5, 50)) for layer in range(30)],
                    )
            return write_journal(folder, rows, make_header(models))

    return Journals


class Painter(torch.nn.Module):
    """An image in, the same image a little changed out."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Conv2d(3, 32, 3, padding=1), torch.nn.Conv2d(32, 32, 3, padding=1)
        self.last = torch.nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, image):
        return image + self.last(torch.relu(self.second(torch.relu(self.first(image)))))


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """A study folder with two trials, int8 and int4, that `convert` made, reports and pictures and all; its
    model's file has a space in its name."""
    folder = tmp_path_factory.mktemp("converted") / "my study"
    folder.mkdir()
    model, image = Painter().eval(), torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(0))
    source = folder.parent / "my painter.pt2"
    torch.export.save(torch.export.export(model, (image,)), source)
    rows, digest = [], None
    for trial, recipe in enumerate(("int8", "int4")):
        out = folder / "trials" / f"{trial:03d}"
        result = CliRunner().invoke(
            convert, [str(source), "--quant", recipe, "--device", "iPhone 12", "--out", str(out), "--json"]
        )
        assert result.exit_code == 0, result.output
        report = json.loads(result.stdout)
        artifact, digest = report["artifacts"][0], report["source"]["sha256"]
        name = report["source"]["outputs"][0]["name"]
        with torch.no_grad():
            reference = {name: model(image).numpy()}
        outputs = open_runner(out / artifact["path"])({"image": image.numpy()})
        np.savez(out / "pictures.npz", **pictures_of(outputs, reference))
        error = artifact["validation"]["compression"][0]
        rows.append(
            make_row(
                trial,
                "my painter",
                recipe=recipe,
                size_bytes=artifact["size_bytes"],
                psnr_db=error["psnr_db"],
                cosine=error["cosine"],
                latency=[],
                pictures=f"trials/{trial:03d}/pictures.npz",
            )
        )
    header = make_header(devices=["iPhone 12"])
    header["models"] = [{"name": "my painter", "path": str(source), "sha256": digest, "parameters": 11_000}]
    return write_journal(folder, rows, header)


EVALS = '''
import os, sys, time
from pathlib import Path

RECORD = Path(__file__).with_name("record.txt")

def steady(run):
    return Path(run.path).parent.name.count("int") + 0.5

def raises_on_int4(run):
    print("a voice", flush=True)
    if "int4" in str(run.path):
        raise ValueError("no int4 here")
    return 1.0

def ends_on_int4(run):
    if "int4" in str(run.path):
        sys.exit(3)
    return 1

def nan(run):
    return float("nan")

def text(run):
    return "0.5"

def dies_on_int4(run):
    with RECORD.open("a") as stream:
        stream.write(Path(run.path).parent.name + "\\n")
    if "int4" in str(run.path):
        os.kill(os.getpid(), 9)
    return 1.0

def dies_with_tqdm_on_int4(run):
    from tqdm import tqdm

    if "int4" in str(run.path):
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), 9)
    return 1.0

def records_times(run):
    begun = time.monotonic()
    time.sleep(0.5)
    with RECORD.open("a") as stream:
        stream.write(f"{begun} {time.monotonic()}\\n")
    return 1.0

def meets_another(run):
    with RECORD.open("a") as stream:
        stream.write("here\\n")
    late = time.monotonic() + 60
    while len(RECORD.read_text().splitlines()) < 2:
        if time.monotonic() > late:
            raise TimeoutError("nobody else came")
        time.sleep(0.02)
    return 1.0

def sleeps_on_int4(run):
    time.sleep(60 if "int4" in str(run.path) else 0)
    return 1.0

def kills_once(run):
    """The process whose id is in the file "victim", or its own; once."""
    victim, done = RECORD.with_name("victim"), RECORD.with_name("killed")
    if "int4" in str(run.path) and not done.exists():
        done.touch()
        os.kill(int(victim.read_text() or os.getpid()), 9)
        time.sleep(1)
    return 1.0

number = 7
'''.replace("\\n", "\\n")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """A folder: net.pt2 and other/net.pt2, which differ; broken.pt2, an archive that is no model; the module
    study_evals, which can be imported."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "other").mkdir()
    for seed, path in enumerate((folder / "net.pt2", folder / "other" / "net.pt2")):
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 32)).eval()
        torch.export.save(torch.export.export(net, (torch.randn(4, 32),)), path)
    with zipfile.ZipFile(folder / "broken.pt2", "w") as archive, zipfile.ZipFile(folder / "net.pt2") as good:
        for name in good.namelist():
            archive.writestr(name, b"" if "weight" in name else good.read(name))
    (folder / "study_evals.py").write_text(EVALS)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def study():
    """study(argument, ...) -> what `cidermill study` gives in this process."""

    def command(*arguments):
        return CliRunner().invoke(main, ["study", *map(str, arguments), "--no-sensitivity"])

    return command


@pytest.fixture(scope="session")
def started():
    """started(log, argument, ...) -> a process of its own, and its own session, that runs `cidermill study`
    and writes to the file `log`, and its result to `log`.out.

    It is forked, so that it need not import torch for ten seconds; everything else is as from a shell.
    file_bytes: no file may be longer.
    """
    running = []

    def command(log, *arguments, file_bytes=resource.RLIM_INFINITY):
        given = ["study", *map(str, arguments), "--no-sensitivity"]
        process = multiprocessing.get_context("fork").Process(target=_study, args=(log, given, file_bytes))
        process.start()
        running.append(process)
        return process

    yield command
    for process in running:
        if process.is_alive():
            process.kill()


def _study(log, arguments, file_bytes):
    os.setsid()
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    for name, number in ((f"{log}.out", 1), (log, 2)):
        with open(name, "ab", buffering=0) as stream:
            os.dup2(stream.fileno(), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    main(arguments)


def journal_rows(folder):
    """The rows as the journal has them, line by line: the oracle does not read it with our reader."""
    return [json.loads(line) for line in (folder / "study.jsonl").read_text().splitlines()[1:]]


def left_over(folder):
    """Whatever a killed process could leave: hidden files and folders, and halves of files."""
    return [
        path
        for path in folder.rglob("*")
        if path.name.startswith(".") or path.suffix == ".part" or ".lock" in path.name
    ]


@pytest.fixture(scope="session")
def rows_of():
    return journal_rows


@pytest.fixture(scope="session")
def leftovers():
    return left_over
