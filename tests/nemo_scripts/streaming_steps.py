"""Steps of the harness that stream: small models learn four spoken prompts by heart, then stock scripts stream them.

The models know their sentences, so that transcripts are words and a wrong frame shows. The streaming model has four
latencies; the offline one is for NeMo's buffered pipeline, which normalises the features of its buffer whatever the
model was trained with. That pipeline also decodes the frames after the end of a recording: NeMo's own encoder
(`--stand-in`) may spell something there and fail the last step; ours spells nothing.
"""

import functools
import json
from pathlib import Path

from step import Step, file_name
from streaming_checks import check_cache_aware, check_each, check_learned, check_offline, check_pipeline

PROMPTS = Path(__file__).parents[2] / "data" / "asterisk_en"
CHOSEN = ["call-fwd-no-ans", "call-fwd-unconditional", "check-number-dial-again", "conf-getpin"]
WINDOWS = [[28, 13], [28, 6], [28, 1], [28, 0]]
SMALL = [
    *("model.encoder.n_layers=2", "model.encoder.d_model=64", "model.encoder.n_heads=4"),
    "model.interctc.apply_at_layers=[0]",
    *("model.encoder.subsampling_conv_channels=32", "model.encoder.dropout=0", "model.encoder.dropout_pre_encoder=0"),
    *("model.spec_augment.freq_masks=0", "model.spec_augment.time_masks=0"),
    "model.preprocessor.dither=0",  # as in the pipelines: silence is then a constant, not noise of variance 1
    # The pipelines put padding before and after the sound: words must be known at any place in an encoder frame.
    "++model.train_ds.augmentor.silence={prob:1.0,min_start_silence_secs:0,max_start_silence_secs:0.3,"
    "min_end_silence_secs:0,max_end_silence_secs:0.5}",
]
# The scripts draw their numbers unseeded: the same lines in front of a script make its training the same again.
SEEDED = """
import runpy, sys
from lightning.pytorch import seed_everything

seed_everything(0)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
# What `transcribe` gives at each look-ahead; transcribe_speech.py of NeMo 2.7 takes the first whatever it is told.
TRANSCRIBE = """
import json, sys
import nemo_lact
from nemo.collections.asr.models import ASRModel

_, model, manifest, windows, output = sys.argv
model = ASRModel.restore_from(model, map_location="cpu").eval()
files = [json.loads(line)["audio_filepath"] for line in open(manifest)]
for window in json.loads(windows):
    model.encoder.set_default_att_context_size(window)
    with open(f"{output}_{window[1]}.json", "w") as out:
        for found in model.transcribe(files, batch_size=4):
            print(json.dumps({"pred_text": found.text}), file=out)
"""
LACT = ["model.encoder.num_lact_heads=2", "model.encoder.lact_chunk_size=16"]
STREAMED = [f"model.encoder.att_context_size={WINDOWS}".replace(" ", "")]
CONFIGS = {
    "lact": {
        "streamed": ["--config-name=lact_ctc_bpe_streaming", *LACT, *STREAMED],
        "offline": ["--config-name=lact_ctc_bpe", *LACT, "model.encoder.att_context_size=[16,16]"],
    },
    "conformer": {
        "streamed": [
            *("--config-path=../conf/fastconformer/cache_aware_streaming", *STREAMED),
            *("--config-name=fastconformer_ctc_bpe_streaming", "model.encoder.dropout_att=0"),
            "~model.optim.sched.d_model",
        ],
        "offline": ["--config-path=../conf/fastconformer", "--config-name=fast-conformer_ctc_bpe"],
    },
}


def make_prompts(folder: Path) -> tuple[Path, Path, Path]:
    """Four prompts as WAVs: manifests to learn from (rows repeated) and to read; a folder with one file of all four.

    Silence is learned too: NeMo's buffered pipeline puts what a model says to 8 s of zeros before its first buffer.
    """
    import numpy as np
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    rows, sound = [], []
    for line in (PROMPTS / "train.json").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if Path(row["audio_filepath"]).stem not in CHOSEN:
            continue
        samples, rate = soundfile.read(PROMPTS / row["audio_filepath"], dtype="float32")
        path = folder / Path(row["audio_filepath"]).with_suffix(".wav").name
        soundfile.write(path, samples, rate)
        rows.append({"audio_filepath": str(path), "duration": len(samples) / rate, "text": row["text"]})
        sound.append(samples)
    train, read, joined = folder / "learn.json", folder / "prompts.json", folder / "joined" / "joined.wav"
    text = "".join(json.dumps(row) + "\n" for row in rows)
    silence = folder / "silence.wav"
    soundfile.write(silence, np.zeros(8 * rate), rate)
    nothing = json.dumps({"audio_filepath": str(silence), "duration": 8.0, "text": ""}) + "\n"
    train.write_text((text * 4 + nothing) * 120)
    read.write_text(text)
    joined.parent.mkdir(exist_ok=True)
    soundfile.write(joined, np.concatenate(sound), rate)
    return train, read, joined.parent


def streaming_steps(nemo: Path, work: Path, encoder: str) -> list[Step]:
    train, prompts, joined = make_prompts(work / "prompts")
    asr, tokenizer = nemo / "examples" / "asr", work / "prompt_tokenizer" / "tokenizer_spe_bpe_v48"

    def trained(name: str) -> Path:
        return work / "exp" / name / "checkpoints" / f"{name}.nemo"

    def learn(name: str) -> Step:
        command = [
            *("-c", SEEDED, str(asr / "asr_ctc" / "speech_to_text_ctc_bpe.py")),
            *(*CONFIGS[encoder][name], *SMALL, f"model.tokenizer.dir={tokenizer}", "model.tokenizer.type=bpe"),
            *(f"model.train_ds.manifest_filepath={train}", "model.train_ds.batch_size=4"),
            *(f"model.validation_ds.manifest_filepath={prompts}", "model.validation_ds.batch_size=4"),
            *("model.train_ds.num_workers=0", "model.validation_ds.num_workers=0", "model.train_ds.max_duration=20"),
            *("model.optim.lr=3e-3", "model.optim.sched.name=CosineAnnealing", "model.optim.sched.warmup_steps=20"),
            *("trainer.devices=1", "trainer.accelerator=cpu", "trainer.strategy=auto", "trainer.precision=32"),
            *("trainer.max_epochs=1", "++trainer.sync_batchnorm=false", "trainer.log_every_n_steps=50"),
            *(f"exp_manager.name={name}", f"++exp_manager.explicit_log_dir={work}/exp/{name}"),
        ]
        return Step(f"learn, {name}", command, lambda log: check_learned(log, trained(name)), ("prompt tokenizer",))

    def transcribe(name: str) -> Step:
        output = work / f"{name}_offline.json"
        return Step(
            f"transcribe, {name}",
            [
                *(str(asr / "transcribe_speech.py"), f"model_path={trained(name)}", f"dataset_manifest={prompts}"),
                *(f"output_filename={output}", "batch_size=4"),
            ],
            lambda log: check_offline(log, output),
            (f"learn, {name}",),
        )

    cache_aware = str(asr / "asr_cache_aware_streaming" / "speech_to_text_cache_aware_streaming_infer.py")
    common = [cache_aware, f"model_path={trained('streamed')}", "compare_vs_offline=true", "matmul_precision=highest"]
    steps = [
        Step(
            "prompt tokenizer",
            [
                str(nemo / "scripts/tokenizers/process_asr_text_tokenizer.py"),
                *(f"--manifest={prompts}", f"--data_root={work}/prompt_tokenizer"),
                *("--vocab_size=48", "--tokenizer=spe", "--spe_type=bpe", "--log"),
            ],
            lambda log: f"{(tokenizer / 'tokenizer.model').stat().st_size} bytes",
        ),
        learn("streamed"),
        learn("offline"),
        transcribe("streamed"),
        transcribe("offline"),
    ]
    for left, right in WINDOWS:
        name = f"stream, look-ahead {right}"
        folder = work / file_name(name)
        steps.append(
            Step(
                name,
                [
                    *(*common, f"dataset_manifest={prompts}", "batch_size=3", f"output_path={folder}"),
                    *(f"att_context_size=[{left},{right}]", "debug_mode=true"),
                ],
                functools.partial(check_cache_aware, output=folder / "streaming_out_streamed_prompts.json"),
                ("learn, streamed",),
            )
        )
    # A folder, as the script ends every run with audio_file=... in an UnboundLocalError, after the transcript.
    one, alone = functools.partial(check_cache_aware, output=None), [*common, f"audio_dir={joined}"]
    padded = [*alone, "pad_and_drop_preencoded=true"]
    steps += [
        Step("stream, one long file", alone, one, ("learn, streamed",)),
        Step("stream, padded first step", padded, one, ("learn, streamed",)),
    ]

    def pipeline(name: str, config: str, model: str, offline: Path, needs: str, *args: str) -> Step:
        output = work / f"{file_name(name)}.json"
        command = [
            *(str(asr / "asr_streaming_inference" / "asr_streaming_infer.py"), f"--config-name={config}"),
            *("--config-path=../conf/asr_streaming_inference", f"asr.model_name={trained(model)}"),
            *("asr.device=cpu", "asr.compute_dtype=float32", "asr.use_amp=false", "matmul_precision=highest"),
            *(f"audio_file={prompts}", f"output_filename={output}", "streaming.batch_size=4", *args),
        ]
        check = functools.partial(check_pipeline, output=output, offline=offline)
        return Step(name, command, check, (f"learn, {model}", needs))

    each = work / "offline_look-ahead"
    steps.append(
        Step(
            "offline, each look-ahead",
            ["-c", TRANSCRIBE, str(trained("streamed")), str(prompts), json.dumps(WINDOWS), str(each)],
            lambda log: check_each(log, [Path(f"{each}_{right}.json") for _, right in WINDOWS]),
            ("learn, streamed",),
        )
    )
    for left, right in WINDOWS:
        args = ["streaming.num_slots=8", f"streaming.att_context_size=[{left},{right}]"]
        wanted, needs = Path(f"{each}_{right}.json"), "offline, each look-ahead"
        steps.append(pipeline(f"pipeline, look-ahead {right}", "cache_aware_ctc", "streamed", wanted, needs, *args))
    offline = work / "offline_offline.json"
    steps.append(pipeline("pipeline, buffered", "buffered_ctc", "offline", offline, "transcribe, offline"))
    return steps
