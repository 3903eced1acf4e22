"""What the streaming scripts must have written."""

import importlib.metadata
import re
from pathlib import Path

from stock_checks import expect, read_lines, weights

SAME = "Found 0 differences in the outputs of the model in streaming mode vs offline mode."


def texts(output: Path, key: str = "pred_text") -> list[str]:
    found = [line[key] for line in read_lines(output)]
    expect(sum(map(len, found)) > 40, f"too little text in {output.name} for a comparison to mean anything: {found}")
    return found


def check_learned(log: str, nemo_file: Path) -> str:
    """The model must know its prompts, or that streaming equals offline would say little."""
    weights(nemo_file)
    reached = re.findall(r"'val_wer' reached ([\d.]+)", log)
    expect(reached and float(reached[-1]) <= 0.2, f"val_wer {reached}: the prompts were not learned (limit 0.2)")
    return f"val_wer {reached[-1]}"


def check_offline(log: str, output: Path) -> str:
    return f"{len(texts(output))} texts"


def check_each(log: str, outputs: list[Path]) -> str:
    return f"{sum(len(texts(output)) for output in outputs)} texts"


def check_cache_aware(log: str, output: Path) -> str:
    """Frame by frame the script's own offline pass, in each batch, and in words.

    The script makes features file by file and takes the frame after the last as heard, which `transcribe` masks: its
    offline text may differ from that of transcribe_speech.py in the last token, streamed or not.
    """
    offline = re.findall(r"Final offline transcriptions: +(\[.*\])", log)
    streamed = re.findall(r"Final streaming transcriptions: +(\[.*\])", log)
    expect(offline and offline == streamed, f"offline {offline}, streamed {streamed}")
    batches = log.count(SAME)
    expect(batches == len(offline), f"{batches} of {len(offline)} batches without a difference in any frame")
    if output is None:
        expect(len(offline[0]) > 40, f"too little text for a comparison to mean anything: {offline}")
        return "1 file, no frame differs"
    return f"{len(texts(output))} texts, no frame differs"


def check_pipeline(log: str, output: Path, offline: Path) -> str:
    """The words of `transcribe`. Features differ a little where NeMo cuts the sound, so frames may.

    The pipelines of NeMo 2.7 take a part of the padding at the end as heard, up to 2 s: there only that they run.
    """
    got, wanted = texts(output), texts(offline)
    if int(importlib.metadata.version("nemo_toolkit").split(".")[0]) < 3:
        expect(len(got) == len(wanted), f"{len(got)} texts of {len(wanted)} files")
        return f"{len(got)} texts, not compared (NeMo 2)"
    expect(got == wanted, f"pipeline {got}, offline {wanted}")
    return f"{len(got)} texts as offline"
