"""From the demo's network to an app: a study of 24 recipes, the picture of its front, and a signed bundle of
the smallest that is good enough.

python demo/study.py OUT_DIR          after `make demo`, which leaves model.pt and samples.npz there
"""

import json
import subprocess
import sys
from pathlib import Path

from front import picture

from cidermill.pipeline.study.results import load_study

GOOD_ENOUGH = "psnr>=40"
BIN = Path(sys.executable).parent


def run(*words: object) -> str:
    """A command line, shown before it runs. -> its standard output. Ends the script where it fails."""
    command = [str(word) for word in words]
    print(f"\n$ {' '.join(command)}", flush=True)
    done = subprocess.run([str(BIN / command[0]), *command[1:]], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(done.stdout)
        sys.exit(done.returncode)
    return done.stdout


def main(folder: Path) -> int:
    study, bundle, key = folder / "study", folder / "Digits.bundle", folder / "key.pem"
    print(
        run(
            "cidermill",
            "study",
            folder / "model.pt",
            "--recipes",
            "standard",
            "--samples",
            folder / "samples.npz",
            "--out",
            study,
        )
    )
    picture(load_study(study), Path(__file__).parent / "front.png")
    best = json.loads(run("cidermill", "study", study, "--best", GOOD_ENOUGH, "--json"))["models"][0]
    print(best["command"])
    if not key.exists():
        run("cidermill", "keygen", key)
    winner = (study / best["trial"]["report"]).parent
    print(
        run("cidermill", "bundle", f"Digits={winner}", "--out", bundle, "--sign", key, "--licence", "CC0-1.0")
    )
    print(run("cidermill", "verify", bundle, "--key", key.with_suffix(".pub.pem"), "--run"))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
