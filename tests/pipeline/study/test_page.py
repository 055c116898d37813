"""study.html: whole, self-contained, inert whatever the names; and, where Chromium is, that its script does
what it should."""

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

from cidermill.models.errors import UserError
from cidermill.pipeline.report.json_files import to_builtins
from cidermill.pipeline.study.page import html_text, page_data, write_page
from cidermill.pipeline.study.page_records import TrialLayers
from cidermill.pipeline.study.results import load_study

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Page(HTMLParser):
    """The elements of a page, its visible text, and the JSON it carries."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            continue

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    @property
    def scripts(self):
        return [text for tag, text in self.texts if tag == "script"]

    @property
    def visible(self):
        return " ".join(text for tag, text in self.texts if tag not in ("script", "style"))

    @property
    def data(self):
        return json.loads(next(text for text in self.scripts if text.startswith("{")))

    def hrefs(self):
        return [attrs["href"] for tag, attrs in self.elements if "href" in attrs]


def page_of(folder):
    return Page(write_page(folder).read_text())


def test_a_converted_study(converted):
    page = page_of(converted)
    assert sorted(page.hrefs()) == ["trials/000/report.html", "trials/001/report.html"]
    assert all((converted / link).is_file() for link in page.hrefs())
    trials = page.data["trials"]
    assert [(trial["recipe"], trial["front"]) for trial in trials] == [("int8", True), ("int4", True)]
    layers = page.data["layers"]["my painter"]
    assert layers["names"] == ["second.weight"]
    assert layers["trials"]["0"]["snr"][0] > layers["trials"]["1"]["snr"][0] + 20  # four bits are 24 dB
    assert layers["trials"]["0"]["bits"][0] > layers["trials"]["1"]["bits"][0]
    picture = next(iter(page.data["pictures"]["my painter"].values()))
    assert (picture["height"], picture["width"], set(picture["trials"])) == (24, 32, {"0", "1"})


def test_it_loads_nothing(converted):
    page = page_of(converted)
    assert not [attrs for _, attrs in page.elements if "src" in attrs or "srcset" in attrs]
    assert not [
        tag for tag, _ in page.elements if tag in ("link", "iframe", "object", "embed", "base", "img")
    ]
    assert not [text for tag, text in page.texts if tag == "style" and ("url(" in text or "@import" in text)]


def test_equal_studies_give_equal_bytes(tmp_path, journals):
    pages = [write_page(journals.many(tmp_path / name, trials=12)).read_bytes() for name in ("a", "b")]
    assert pages[0] == pages[1]
    assert str(tmp_path).encode() not in pages[0]


def test_hostile_names_stay_text(tmp_path, journals):
    bad = journals.hostile
    rows = [
        journals.row(0, bad, target=bad, recipe=bad, reason=bad, verdict="fail"),
        journals.failed(1, bad, target=bad, recipe=f"{bad}2", reason=bad),
        journals.row(2, bad, report="javascript:alert(1)"),
        journals.row(3, bad, report='"><script>x</script>'),
    ]
    rows[0]["latency"][0]["device"] = bad
    journals.report(tmp_path, 0, bad, [(bad, 4.0, 20.0)])
    header = journals.header((bad,), eval=bad, constraints=["size<=1MB"], samples={"kind": bad, "count": 3})
    page = page_of(journals.write(tmp_path, rows, header))
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert not [attrs for _, attrs in page.elements if any(name.startswith("on") for name in attrs)]
    assert not {"img", "b"} & {tag for tag, attrs in page.elements if "onerror" in attrs or tag == "img"}
    assert all(not link.startswith("javascript:") for link in page.hrefs())
    assert page.data["models"] == [bad]
    assert bad in page.visible


@pytest.mark.parametrize("models", [("net",), ("a", "b", "c")])
def test_many_trials(tmp_path, journals, models):
    study = load_study(journals.many(tmp_path, models))
    page = Page(html_text(study))
    assert len(page.data["trials"]) == 60 * len(models)
    assert [heat["model"] for heat in page.data["heat"]] == list(models)
    rows = [attrs for tag, attrs in page.elements if tag == "tr"]
    assert len(rows) == 60 * len(models) + 1
    assert page.visible.count("★") == len(study.front) + 1  # and once in the legend


def test_no_trials(tmp_path, journals):
    page = page_of(journals.write(tmp_path, []))
    assert "No trial has ended yet." in page.visible
    assert page.data["trials"] == []


def test_all_failed(tmp_path, journals):
    page = page_of(journals.write(tmp_path, [journals.failed(0), journals.failed(1, reason="")]))
    assert "it needs samples" in page.visible
    assert "Give them with" not in page.visible  # the first line says what
    assert "✗ failed" in page.visible


def test_the_best_within_the_studys_constraints(tmp_path, journals):
    rows = [
        journals.row(0, size_bytes=9_000_000, recipe="int8"),
        journals.row(1, size_bytes=1_000_000, recipe="int4", psnr_db=3.0),
    ]
    header = journals.header(constraints=["size<=12MB", "psnr>=30"])
    text = page_of(journals.write(tmp_path / "a", rows, header)).visible
    assert "Best within size<=12MB, psnr>=30" in text
    assert "convert models/0.pt --target coreml --quant int8" in text
    text = page_of(journals.write(tmp_path / "b", rows, journals.header(constraints=["psnr>=60"]))).visible
    assert "psnr>=60 cannot be met: the nearest is 38.2 dB, 21.8 dB too little" in text


FINISHED = """
import sys
from pathlib import Path
from click.testing import CliRunner
from cidermill.pipeline.commands.cli import main
from cidermill.pipeline.study.page import write_page
for options in ([], ["--json"], ["--best", "size<=12MB"]):
    assert CliRunner().invoke(main, ["study", sys.argv[1], *options]).exit_code == 0
write_page(Path(sys.argv[1]))
print({"torch", "coremltools", "executorch", "transformers", "optuna"} & set(sys.modules))
"""


def test_a_finished_study_is_shown_and_drawn_without_anything_heavy(tmp_path, journals):
    """Its table of sensitivities is read as well."""
    journals.report(tmp_path, 0, "coreml", [("a.weight", 8.0, 48.0)])
    journals.write(tmp_path, [journals.row(0)])
    (tmp_path / "sensitivity.json").write_text(table("ab" * 32, {"int8": {"a": [1e-6, 1e-5]}}))
    words = [sys.executable, "-c", FINISHED, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("set()\n", 0), done.stderr


def test_no_study(tmp_path):
    with pytest.raises(UserError, match="is no study"):
        write_page(tmp_path)
    assert not list(tmp_path.iterdir())


# Layers


def test_layers_without_a_table_are_the_trials_weights(tmp_path, journals):
    journals.report(
        tmp_path,
        0,
        "coreml",
        [("a.weight", 8.0, 48.12345678), ("norm.weight", 16.0, None), ("b.weight", 8.0, 40.0)],
    )
    journals.report(
        tmp_path,
        1,
        "coreml",
        [("a.weight", 4.0, 24.0), ("norm.weight", 16.0, None), ("b.weight", 16.0, None)],
    )
    rows = [journals.row(0, recipe="int8"), journals.row(1, recipe="int4; b*=float16"), journals.failed(2)]
    data, notes = page_data(load_study(journals.write(tmp_path, rows)))
    assert notes == []
    assert to_builtins(data.heat) == [
        {
            "model": "net",
            "measured": False,
            "layers": ["a.weight", "b.weight"],
            "columns": ["int8", "int4; b*=float16"],
            "values": [[48.123, 24.0], [40.0, None]],
        }
    ]
    layers = data.layers["net"]
    assert layers.forms == ("int8", "int16", "int4")
    assert layers.trials[1] == TrialLayers(bits=(4.0, 16.0), snr=(24.0, None), form=(2, 1))


def table(digest, errors):
    return json.dumps(
        {
            "schema": "cidermill.sensitivity/1",
            "source": f"{digest} input:1x3",
            "samples": "s",
            "outputs": ["x", "y"],
            "errors": errors,
        }
    )


def test_a_table_of_sensitivities_goes_first(tmp_path, journals):
    errors = {"int8": {"a": [1e-6, 1e-5], "b": [0.0, 0.0]}, "int4": {"a": [1e-2, 1e-5], "b": [1e-3, 1e-4]}}
    journals.report(tmp_path, 0, "coreml", [("a.weight", 8.0, 48.0)])
    journals.write(tmp_path, [journals.row(0)])
    (tmp_path / "sensitivity.json").write_text(table("ab" * 32, errors))
    (heat,) = page_data(load_study(tmp_path))[0].heat
    assert to_builtins(heat) == {
        "model": "net",
        "measured": True,
        "layers": ["a", "b"],
        "columns": ["int8", "int4"],
        "values": [[50.0, 20.0], [None, 30.0]],
    }


def test_a_table_of_another_model_does_not_count(tmp_path, journals):
    journals.report(tmp_path, 0, "coreml", [("a.weight", 8.0, 48.0)])
    journals.write(tmp_path, [journals.row(0)])
    (tmp_path / "sensitivity.json").write_text(table("ff" * 32, {"int8": {"a": [1e-6, 1e-5]}}))
    assert page_data(load_study(tmp_path))[0].heat[0].measured is False


def test_what_cannot_be_read_is_said_in_the_page(tmp_path, journals):
    rows = [
        journals.row(0),
        journals.row(1, pictures="trials/001/pictures.npz"),
        journals.row(2, report="../outside/report.html"),
    ]
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "report.json").write_text("{}")
    folder = journals.write(tmp_path / "study", rows)
    (folder / "sensitivity.json").write_text("{}")
    (folder / "trials" / "001").mkdir(parents=True)
    (folder / "trials" / "001" / "report.json").write_text("{")
    (folder / "trials" / "001" / "pictures.npz").write_bytes(b"PK\x03\x04 nothing")
    text = page_of(folder).visible
    assert "The report of trial 0 could not be read: No such file or directory." in text
    assert "The report of trial 1 could not be read" in text
    assert "The report of trial 2 could not be read: it lies outside the study." in text
    assert "The pictures of trial 1 could not be read" in text
    assert "sensitivity.json is no table of sensitivities" in text


# In a browser

ACT = """
<script>
const told = [];
window.addEventListener("error", event => told.push("error: " + event.message));
window.open = url => told.push("opened " + url);
const rows = () => [...document.querySelectorAll("#trials tbody tr")];
const column = index => rows().map(row => row.cells[index].textContent).join(",");
window.addEventListener("load", () => setTimeout(async () => {
  const scatter = document.getElementById("scatter");
  const marks = scatter.data.find(trace => trace.mode === "markers");
  const symbols = marks.customdata.map((trial, index) => trial + marks.marker.symbol[index]);
  told.push("marked " + symbols.sort().join(","));
  told.push("line " + scatter.data.find(trace => trace.mode === "lines").y.join(","));
  scatter.emit("plotly_click", { points: [{ customdata: 1 }] });
  document.querySelectorAll("#trials th")[3].click();
  const sorted = column(1);
  document.querySelectorAll("#trials th")[3].click();
  told.push("sorted " + sorted + " and " + column(1));
  const a = document.getElementById("trial-a");
  a.value = 0; a.dispatchEvent(new Event("change"));
  await new Promise(resolve => setTimeout(resolve, 300));
  told.push("compared " + [...document.querySelectorAll("#compare tr")][1].textContent);
  const canvases = [...document.querySelectorAll("#compare-pictures canvas")];
  const pixel = canvas => canvas.getContext("2d").getImageData(0, 0, 1, 1).data.join(" ");
  told.push("pictures " + canvases.map(pixel).join(", "));
  told.push("caption " + canvases[2].parentNode.textContent);
  const done = document.createElement("pre");
  done.id = "told"; done.textContent = told.join("\\n");
  document.body.append(done);
}, 300));
</script>
"""


def in_browser(path):
    """What the page's script did, as `ACT` saw it."""
    page = path.with_name("acted.html")
    page.write_text(path.read_text().replace("</head>", ACT + "</head>"))
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--virtual-time-budget=10000",
        "--dump-dom",
        page.as_uri(),
    ]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    return dict(
        line.split(" ", 1) for line in dom.split('<pre id="told">')[1].split("</pre>")[0].splitlines()
    )


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_script_in_a_browser(tmp_path, journals):
    rows = [
        journals.row(0, recipe="float16", size_bytes=20_000_000, psnr_db=None, exact=True),
        journals.row(1, recipe="int8", size_bytes=10_000_000, psnr_db=40.0),
        journals.row(2, recipe="int4", size_bytes=5_000_000, psnr_db=20.0, pictures="two.npz"),
        journals.row(3, recipe="w8a8", size_bytes=11_000_000, psnr_db=30.0),
        journals.row(4, recipe="int2", size_bytes=3_000_000, psnr_db=2.0, verdict="fail"),
        journals.failed(5),
        journals.row(
            6, recipe="int6", size_bytes=2_000_000, psnr_db=9.0, state="failed", reason="--eval raised"
        ),  # its other figures stay
    ]
    rows[0]["pictures"] = "zero.npz"
    journals.write(tmp_path, rows)
    picture = np.full((20, 20, 3), 0.4, np.float32)  # level 102
    np.savez(tmp_path / "zero.npz", image=picture, other=picture[..., 0])
    picture = picture.copy()
    picture[0, 0] += [0.001, 0, -0.0005]  # a quarter and an eighth of a grey level
    np.savez(tmp_path / "two.npz", image=picture, other=np.full((20, 20), 0.6, np.float32))
    told = in_browser(write_page(tmp_path))
    assert "error:" not in told
    assert told["marked"] == "0star,1star,2star,3circle,4circle-open,6circle-open"
    assert told["line"].startswith("20,40,4")  # the exact one is drawn above the best finite one
    assert told["opened"] == "trials/001/report.html"
    assert told["sorted"] == "6,4,2,1,3,0,5 and 0,3,1,2,4,6,5"  # by size; what is not known stays last
    assert told["compared"] == "size20.0 MB5.00 MB−75 %"
    first, second, apart, *others = told["pictures"].split(", ")
    assert first == second == "102 102 102 255"
    red, green, blue, _ = map(int, apart.split())  # the difference, brightened a thousandfold
    assert (red, green) == (255, 0) and abs(blue - 127.5) < 2
    assert others == ["102 102 102 255", "153 153 153 255", "255 255 255 255"]
    assert "1000 times as bright; at most 0.25 of 255 levels" in told["caption"]
