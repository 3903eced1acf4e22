"""What the stock scripts must have written. Each check returns a short note or raises what is wrong."""

import json
import math
import tarfile
from collections.abc import Callable
from pathlib import Path


def expect(condition, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def read_lines(path: Path) -> list[dict]:
    expect(path.is_file(), f"{path} was not written")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def weights(nemo_file: Path) -> dict:
    import torch

    expect(nemo_file.is_file(), f"{nemo_file} was not written")
    with tarfile.open(nemo_file) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith("model_weights.ckpt"))
        state = torch.load(archive.extractfile(member), map_location="cpu", weights_only=True)
    bad = [name for name, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    expect(not bad, f"{nemo_file.name}: not finite: {bad[:3]}")
    return state


def check_trained(log: str, nemo_file: Path, start: Path | None = None) -> str:
    """Finite weights in the .nemo, a finite val_wer in the checkpoint's name; with `start`, an encoder that learned."""
    state = weights(nemo_file)
    found = [path.name for path in nemo_file.parent.glob("*val_wer=*.ckpt")]
    expect(found, f"no checkpoint with val_wer in {nemo_file.parent}")
    wer = float(found[0].split("val_wer=")[1].split("-")[0].removesuffix(".ckpt"))
    expect(math.isfinite(wer), f"val_wer is {wer}")
    if start is not None:
        old = weights(start)
        expect(old.keys() == state.keys(), f"other weights: {sorted(old.keys() ^ state.keys())[:3]}")
        learned = [name for name in old if name.startswith("encoder.") and old[name].is_floating_point()]
        expect(any((old[name] != state[name]).any() for name in learned), "the encoder's weights did not change")
    return f"{sum(value.numel() for value in state.values()):,} values, val_wer {wer:.2f}"


def check_resumed(log: str, nemo_file: Path) -> str:
    expect("Restored all states" in log or "Restoring states" in log, "the log does not say that states were restored")
    return check_trained(log, nemo_file)


def check_texts(log: str, output: Path, manifest: Path, key: str = "pred_text", extra: tuple[str, ...] = ()) -> str:
    lines, wanted = read_lines(output), read_lines(manifest)
    names = sorted(Path(line["audio_filepath"]).name for line in lines)
    expect(names == sorted(Path(line["audio_filepath"]).name for line in wanted), f"files in {output.name}: {names}")
    for line in lines:
        expect(isinstance(line.get(key), str), f"no text {key!r} in {line}")
        for name in extra:
            expect(isinstance(line.get(name), list), f"no list {name!r} in {line}")
    return f"{len(lines)} texts" + (f", {', '.join(extra)}" if extra else "")


def check_log(log: str, wanted: str, inner: Callable[[str], str]) -> str:
    expect(wanted in log, f"the log lacks {wanted!r}")
    return f"{inner(log)}, {wanted!r}"


def check_aligned(log: str, output: Path, manifest: Path) -> str:
    """Words in the CTM files: those of the manifest, in order, inside the recording."""
    for line in read_lines(manifest):
        name = Path(line["audio_filepath"]).stem
        ctm = output / "ctm" / "words" / f"{name}.ctm"
        expect(ctm.is_file(), f"{ctm} was not written")
        rows = [row.split() for row in ctm.read_text().splitlines()]
        expect([row[4] for row in rows] == line["text"].split(), f"words of {ctm.name}: {[row[4] for row in rows]}")
        starts, ends = [float(row[2]) for row in rows], [float(row[2]) + float(row[3]) for row in rows]
        # One encoder frame beyond the end is NeMo's rounding up.
        expect(starts == sorted(starts) and ends[-1] <= line["duration"] + 0.1, f"times of {ctm.name}: {starts} {ends}")
    return "word times in order"


def check_exported(log: str, output: Path) -> str:
    expect(output.is_file() and output.stat().st_size > 10_000, f"{output} was not written")
    difference = float(log.split("largest difference ")[1].split()[0])
    expect(difference < 1e-3, f"ONNX and torch differ by {difference} in log-probabilities (limit 1e-3)")
    return f"ONNX and torch differ by {difference:.0e}"
