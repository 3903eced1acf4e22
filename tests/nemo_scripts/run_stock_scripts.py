"""Run NeMo's own, unmodified scripts against this package and check what they write.

    python tests/nemo_scripts/run_stock_scripts.py --nemo <NeMo checkout> --workdir <folder>

nemo_lact must be installed (as a wheel or with `pip install -e .`) in the Python that runs this file: the scripts get
no help in finding it. Everything runs on CPU with a model of two layers and a few seconds of noise, so the texts are
nonsense; what counts is that each script ends well and its files are whole. `--stand-in` runs NeMo's ConformerEncoder
in our place, to tell a mistake of ours from one of the environment. Exit status 1 if a step failed.

`scripts/export.py` is gone from NeMo since 2.7 and asks for a GPU: the step `export` calls the same `model.export`.
"""

import argparse
import functools
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from step import Step, file_name
from stock_checks import (
    check_aligned,
    check_exported,
    check_log,
    check_resumed,
    check_texts,
    check_trained,
    expect,
)
from streaming_steps import streaming_steps

SAMPLE_RATE = 16000
WORDS = "we hear the small river under an old bridge and seven birds sing of a quiet morning by our door".split()

# A model small enough for a laptop; what these keys do not name comes from our YAMLs as they are.
TINY = {
    "lact": [
        *("model.encoder.n_layers=2", "model.encoder.d_model=64", "model.encoder.n_heads=4"),
        *("model.encoder.num_lact_heads=2", "model.encoder.lact_chunk_size=16"),
        *("model.encoder.att_context_size=[16,16]", "model.encoder.subsampling_conv_channels=32"),
        "model.interctc.apply_at_layers=[0]",
    ],
    "conformer": ["model.encoder.n_layers=2", "model.encoder.d_model=64", "model.encoder.n_heads=4"],
}
CONFIGS = {
    "lact": {
        "char": ["--config-name=lact_ctc_char"],
        "bpe": ["--config-name=lact_ctc_bpe"],
        "hybrid": ["--config-name=lact-conformer_ctc_bpe"],
    },
    "conformer": {
        "char": ["--config-path=../conf/conformer", "--config-name=conformer_ctc_char"],
        "bpe": ["--config-path=../conf/fastconformer", "--config-name=fast-conformer_ctc_bpe"],
    },
}
CPU = [
    *("trainer.devices=1", "trainer.accelerator=cpu", "trainer.strategy=auto", "trainer.precision=32"),
    *("trainer.max_epochs=1", "++trainer.sync_batchnorm=false"),  # torch synchronises batch norm on GPUs only
]


EXPORT = """
import sys
import numpy as np, onnxruntime, torch
from nemo.collections.asr.models import ASRModel

model = ASRModel.restore_from(sys.argv[1], map_location="cpu").eval()
model.export(sys.argv[2])
session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
names, worst = [i.name for i in session.get_inputs()], 0.0
for frames in (77, 301, 900):  # other lengths, batch and number of memory chunks than the example that was traced
    features, lengths = torch.randn(2, model.cfg.preprocessor.features, frames), torch.tensor([frames, frames // 2])
    got = session.run(None, dict(zip(names, [features.numpy(), lengths.numpy()])))[0]
    with torch.inference_mode():
        encoded, valid = model.encoder(audio_signal=features, length=lengths)
        wanted = model.decoder(encoder_output=encoded).numpy()
    worst = max(worst, *(np.abs(got[b, :n] - wanted[b, :n]).max() for b, n in enumerate(valid.tolist())))
print(f"largest difference {worst:.1e}")
"""


def make_manifest(folder: Path, name: str, count: int, seed: int) -> Path:
    """`count` WAVs of 2 to 3 s of noise, each with a sentence that fits its length, and their NeMo manifest."""
    import numpy as np
    import soundfile

    rng, choose = np.random.default_rng(seed), random.Random(seed)
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        path, seconds = folder / name / f"{name}_{i}.wav", 2.0 + i / count
        soundfile.write(path, 0.1 * rng.standard_normal(int(seconds * SAMPLE_RATE)), SAMPLE_RATE)
        lines.append({"audio_filepath": str(path), "duration": seconds, "text": " ".join(choose.sample(WORDS, 5))})
    manifest = folder / f"{name}.json"
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return manifest


def make_steps(nemo: Path, work: Path, encoder: str) -> list[Step]:
    train, dev = make_manifest(work / "data", "train", 4, seed=0), make_manifest(work / "data", "dev", 3, seed=1)
    asr, tokenizer = nemo / "examples" / "asr", work / "tokenizer" / "tokenizer_spe_bpe_v48"
    config, tiny = CONFIGS[encoder], TINY[encoder]
    with_bpe = [f"model.tokenizer.dir={tokenizer}", "model.tokenizer.type=bpe", *tiny]

    def trained(name: str) -> Path:
        return work / "exp" / name / "checkpoints" / f"{name}.nemo"

    def training(name: str, script: str, *args: str) -> list[str]:
        data = [
            f"model.{part}_ds.{setting}"
            for part, manifest in (("train", train), ("validation", dev))
            for setting in (f"manifest_filepath={manifest}", "batch_size=2", "num_workers=0")
        ]
        # explicit_log_dir: without it each run makes a folder named by the date.
        folder = [f"exp_manager.name={name}", f"++exp_manager.explicit_log_dir={work}/exp/{name}"]
        return [str(asr / script), *args, *data, *CPU, *folder]

    bpe_script = "asr_ctc/speech_to_text_ctc_bpe.py"
    char_command = training("char", "asr_ctc/speech_to_text_ctc.py", *config["char"], *tiny)
    steps = [
        Step(
            "tokenizer",
            [
                str(nemo / "scripts/tokenizers/process_asr_text_tokenizer.py"),
                *(f"--manifest={train},{dev}", f"--data_root={work}/tokenizer"),
                *("--vocab_size=48", "--tokenizer=spe", "--spe_type=bpe", "--log"),
            ],
            lambda log: expect((tokenizer / "tokenizer.model").is_file(), "no tokenizer.model") or "48 pieces",
        ),
        Step("train char", char_command, lambda log: check_trained(log, trained("char"))),
        Step(
            "resume char",
            [*char_command, "trainer.max_epochs=2", "++exp_manager.resume_if_exists=true"],
            lambda log: check_resumed(log, trained("char")),
            ("train char",),
        ),
        Step(
            "train bpe",
            training("bpe", bpe_script, *config["bpe"], *with_bpe),
            lambda log: check_trained(log, trained("bpe")),
            ("tokenizer",),
        ),
        Step(
            "train bpe, 2 processes",
            [*training("ddp", bpe_script, *config["bpe"], *with_bpe), "trainer.devices=2", "trainer.strategy=ddp"],
            lambda log: check_trained(log, trained("ddp")),
            ("tokenizer",),
        ),
        Step(
            "fine-tune",
            training("tuned", "speech_to_text_finetune.py", f"init_from_nemo_model={trained('bpe')}"),
            lambda log: check_trained(log, trained("tuned"), start=trained("bpe")),
            ("train bpe",),
        ),
    ]
    if "hybrid" in config:
        command = training("hybrid", bpe_script, *config["hybrid"], *with_bpe)
        steps.append(Step("train hybrid", command, lambda log: check_trained(log, trained("hybrid")), ("tokenizer",)))

    def transcribe(name: str, model: str, *args: str, extra: tuple[str, ...] = ()) -> Step:
        output = work / f"{file_name(name)}.json"
        command = [str(asr / "transcribe_speech.py"), f"model_path={trained(model)}", f"output_filename={output}"]
        check = functools.partial(check_texts, output=output, manifest=dev, extra=extra)
        return Step(name, [*command, "batch_size=2", *args], check, (f"train {model}",))

    in_dev = f"dataset_manifest={dev}"
    steps += [
        transcribe("transcribe manifest, char", "char", in_dev),
        transcribe("transcribe manifest, bpe", "bpe", in_dev),
        transcribe("transcribe folder", "bpe", f"audio_dir={dev.with_suffix('')}"),
        transcribe("transcribe timestamps", "bpe", in_dev, "timestamps=true", extra=("word", "segment")),
        Step(
            "transcribe parallel",
            [
                *(str(asr / "transcribe_speech_parallel.py"), f"model={trained('bpe')}"),
                *(f"output_path={work}/parallel", f"predict_ds.manifest_filepath={dev}"),
                *("predict_ds.batch_size=2", "predict_ds.num_workers=0"),
                *("trainer.devices=1", "trainer.accelerator=cpu", "trainer.strategy=auto"),
            ],
            lambda log: check_texts(log, work / "parallel" / "predictions_all.json", dev),
            ("train bpe",),
        ),
        Step(
            "evaluate",
            [
                *(str(asr / "speech_to_text_eval.py"), f"model_path={trained('bpe')}", in_dev),
                *(f"output_filename={work}/evaluated.json", "batch_size=2"),
            ],
            lambda log: check_log(log, "Dataset WER/CER", lambda log: check_texts(log, work / "evaluated.json", dev)),
            ("train bpe",),
        ),
        Step(
            "export",
            ["-c", EXPORT, str(trained("bpe")), str(work / "bpe.onnx")],
            lambda log: check_exported(log, work / "bpe.onnx"),
            ("train bpe",),
        ),
        Step(
            "forced aligner",
            [
                *(str(nemo / "tools/nemo_forced_aligner/align.py"), f"model_path={trained('char')}"),
                *(f"manifest_filepath={dev}", f"output_dir={work}/aligned", "batch_size=2"),
            ],
            lambda log: check_aligned(log, work / "aligned", dev),
            ("train char",),
        ),
    ]
    return steps + streaming_steps(nemo, work, encoder)


def first_error(log: str) -> str:
    """The exception's own line, the last of a traceback; else the log's last line."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":")[0].split(" ")[-1] or line.startswith("Could not")]
    return (errors or lines or ["no output"])[-1]


def run_step(step: Step, work: Path, limit: int) -> tuple[str, str]:
    """Runs one step; returns PASS or FAIL and a note. Its output is kept in <work>/logs."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HYDRA_FULL_ERROR": "1", "OMP_NUM_THREADS": "1"}
    log_file = work / "logs" / f"{file_name(step.name)}.log"
    log_file.parent.mkdir(exist_ok=True)
    with log_file.open("w") as out:
        try:
            command = [sys.executable, *step.command]
            code = subprocess.run(command, cwd=work, env=env, stdout=out, stderr=out, timeout=limit).returncode
        except subprocess.TimeoutExpired:
            return "FAIL", f"ran longer than {limit} s ({log_file})"
    log = log_file.read_text(errors="replace")
    if code != 0:
        return "FAIL", f"exit {code}: {first_error(log)} ({log_file})"
    try:
        return "PASS", step.check(log)
    except Exception as error:
        return "FAIL", f"{type(error).__name__}: {error} ({log_file})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nemo", type=Path, required=True, help="NeMo checkout of the installed NeMo's version")
    parser.add_argument("--workdir", type=Path, required=True, help="folder for data, models and logs")
    parser.add_argument("--stand-in", action="store_true", help="NeMo's ConformerEncoder in place of LaCT")
    parser.add_argument("--only", default="", help="only steps whose name contains this (others' files must exist)")
    parser.add_argument("--limit", type=int, default=600, help="seconds a step may take (default %(default)s)")
    args = parser.parse_args()
    nemo, work = args.nemo.resolve(), args.workdir.resolve()
    if not (nemo / "examples" / "asr" / "transcribe_speech.py").is_file():
        parser.error(f"--nemo {nemo}: no examples/asr/transcribe_speech.py there; give the root of a NeMo checkout")
    work.mkdir(parents=True, exist_ok=True)

    done: dict[str, str] = {}
    for step in make_steps(nemo, work, "conformer" if args.stand_in else "lact"):
        if args.only not in step.name:
            continue
        missing = [name for name in step.needs if done.get(name, "PASS") != "PASS"]
        started = time.monotonic()
        status, note = ("SKIP", f"needs {', '.join(missing)}") if missing else run_step(step, work, args.limit)
        done[step.name] = status
        print(f"{status}  {step.name:26} {time.monotonic() - started:4.0f} s  {note}", flush=True)
    if not done:
        parser.error(f"--only {args.only!r} matches no step")
    failed = sum(status != "PASS" for status in done.values())
    print(f"{len(done) - failed} of {len(done)} steps passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
