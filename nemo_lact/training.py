"""`nemo-lact train`: what NeMo's speech_to_text_ctc.py and speech_to_text_ctc_bpe.py do, without a NeMo checkout.

`compose` gives the config, `check` looks at all that can be checked before anything is built, `train` runs it. A config
without `model.encoder` fine-tunes a .nemo file, as NeMo's speech_to_text_finetune.py does.
"""

import time
from collections.abc import Sequence
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from nemo_lact.data.check import Seen, check_manifests
from nemo_lact.data.problems import KINDS, Report, show
from nemo_lact.data.vocabulary import Characters, Spelling, of_config, of_nemo_file
from nemo_lact.registration import config_dir
from nemo_lact.starter import resolve

CPU_TRAINER = {'accelerator': 'auto', 'devices': 1, 'strategy': 'auto', 'precision': 32}
EPOCH_BATCHES = 1000  # with use_lhotse, unless trainer.limit_train_batches says otherwise
DATASETS = ('train_ds', 'validation_ds', 'test_ds')


class ConfigError(ValueError):
    """The config cannot be used as it is: an unknown name, a bad override or missing values."""


def config_names(folder: str | Path) -> list[str]:
    """Names of the configs in a folder, as `--config-name` takes them."""
    return sorted(path.stem for path in Path(folder).glob('*.yaml'))


def compose(
    config_name: str, overrides: Sequence[str] = (), config_path: str | Path | None = None, complete: bool = True
) -> DictConfig:
    """The config after Hydra overrides, complete (no `???` left) unless `complete` is False.

    Args:
        config_name: file name without .yaml.
        overrides: as on the command line of NeMo's scripts: `key=value`, `+new=value`, `~gone`.
        config_path: folder of the YAMLs; None is that of this package.

    Raises:
        FileNotFoundError: no such folder.
        ConfigError: no such config, an override that Hydra refuses, or mandatory values that are missing.
    """
    folder = Path(config_path or config_dir()).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f'no config folder at {folder}')
    name = config_name.removesuffix('.yaml')
    if name not in config_names(folder):
        raise ConfigError(f"no config '{config_name}' in {folder}; there: {', '.join(config_names(folder)) or 'none'}")
    import nemo.core.config  # noqa: F401  NeMo's resolvers (${multiply:...} and others)

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(folder), version_base=None):
            cfg = hydra_compose(name, overrides=list(overrides))
        missing = sorted(OmegaConf.missing_keys(cfg))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f'{name}: {error}') from error
    if missing and complete:
        raise ConfigError(
            f'{name}: {len(missing)} mandatory values are missing; give each as KEY=VALUE:\n  '
            + '\n  '.join(f'{key}=...' for key in missing)
            + _without_validation(missing)
        )
    return cfg


def check(cfg: DictConfig, overrides: Sequence[str] = ()) -> DictConfig:
    """The config with trainer settings that work on this machine, after a look at its files.

    On a machine without a GPU, `trainer.accelerator`, `devices`, `strategy` and `precision` become those of
    `CPU_TRAINER`, except where `overrides` sets them. With `train_ds.use_lhotse`, `trainer.use_distributed_sampler`
    becomes false and `limit_train_batches` a number, likewise, and the loader gets the `seed`, if there is one.

    Raises:
        ConfigError: a section is missing, a GPU is asked for and there is none, or `seed` is no seed.
        FileNotFoundError: a manifest, audio of a manifest, or the tokenizer folder does not exist.
        ValueError: a manifest is empty or broken, or no row of it is within min_duration and max_duration or can be
            spelt by the model.
    """
    for section in ('trainer', 'model'):
        if cfg.get(section) is None:
            raise ConfigError(f"the config has no section '{section}'; it has {', '.join(cfg) or 'nothing'}")
    if (seed := cfg.get('seed')) is not None and (type(seed) is not int or not 0 <= seed < 2**32):
        raise ConfigError(f'seed={seed}: must be a whole number from 0 to 2**32 - 1, or null for another one each time')
    if (learns := cfg.get('adaptation')) is not None:
        if not isinstance(learns, bool):
            raise ConfigError(f'adaptation={learns}: true, false, or null for that of the model')
        if not _fine_tunes(cfg):
            raise ConfigError(f'adaptation={learns} is for fine-tuning; the config has model.encoder.adaptation for it')
    cfg = _fit_to_machine(cfg, overrides)
    if (cfg.model.get('train_ds') or {}).get('use_lhotse'):
        cfg = _fit_to_lhotse(cfg, overrides)
    tokenizer = (cfg.model.get('tokenizer') or {}).get('dir')
    if tokenizer and not Path(tokenizer).expanduser().is_dir():
        raise FileNotFoundError(f'no tokenizer folder at model.tokenizer.dir={tokenizer}; it holds tokenizer.model')
    if cfg.model.get('train_ds') is None:
        raise ConfigError('the config has no model.train_ds; there is nothing to train on')
    if isinstance(cfg.get('init_from_nemo_model'), str):  # NeMo takes a mapping of several too
        cfg = OmegaConf.merge(cfg, {'init_from_nemo_model': str(resolve(cfg.init_from_nemo_model))})
    _check_data(cfg)
    return cfg


def train(cfg: DictConfig, callbacks: Sequence = ()) -> list[Path]:
    """Train as NeMo's scripts do: Trainer, exp_manager, model, optional start weights, fit, test if there is test_ds.

    They leave the random numbers unseeded; here `cfg.seed` (`+seed=0`) seeds weights, augmentation and order.

    Args:
        callbacks: Lightning callbacks beside `MemoryLog` and those of the config (NeMo's guard lets no foreign ones
            into a config).

    Returns:
        The .nemo files written, newest first; empty without exp_manager, and on other ranks than the first.

    Raises:
        ValueError: the data loader drops every row, or the config needs what is not there.
    """
    import lightning.pytorch as pl
    from nemo.collections.asr.models import EncDecCTCModel, EncDecCTCModelBPE
    from nemo.utils.exp_manager import exp_manager
    from nemo.utils.trainer_utils import resolve_trainer_cfg

    from nemo_lact.training_log import MemoryLog

    started = time.time()
    if cfg.get('seed') is not None:
        pl.seed_everything(cfg.seed, workers=True)
    trainer = pl.Trainer(**resolve_trainer_cfg(cfg.trainer))
    trainer.callbacks.extend([MemoryLog(), *callbacks])
    exp_manager(trainer, cfg.get('exp_manager'))
    model_class = EncDecCTCModel if cfg.model.get('tokenizer') is None else EncDecCTCModelBPE
    try:
        model = _fine_tuned(cfg, trainer) if _fine_tunes(cfg) else model_class(cfg=cfg.model, trainer=trainer)
    except ValueError as error:
        if 'num_samples' in str(error):  # torch's sampler over a data set of no rows
            raise _all_dropped(cfg.model.train_ds) from error
        raise
    _check_loader(model)
    if not _fine_tunes(cfg):
        model.maybe_init_from_pretrained_checkpoint(cfg)
    trainer.fit(model)
    test = cfg.model.get('test_ds')
    if test is not None and test.get('manifest_filepath') is not None and model.prepare_test(trainer):
        trainer.test(model)
    folder = getattr(trainer.checkpoint_callback, 'dirpath', None)
    if folder is None or not trainer.is_global_zero:
        return []
    written = [p for p in Path(folder).glob('*.nemo') if p.stat().st_mtime >= started - 1]
    return sorted(written, key=lambda p: p.stat().st_mtime, reverse=True)


def _fine_tunes(cfg: DictConfig) -> bool:
    return cfg.model.get('encoder') is None


def _fine_tuned(cfg: DictConfig, trainer):
    """The model of `init_from_nemo_model` with the data, vocabulary and optimiser of the config."""
    from nemo.collections.asr.models import ASRModel

    from nemo_lact.transcription import load_model

    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # the model takes parts of it
    model = load_model(cfg.init_from_nemo_model, 'cpu').train()
    model.set_trainer(trainer)
    if cfg.get('adaptation') is not None:
        _let_learn(model, cfg.adaptation)
    tokenizer, labels = cfg.model.get('tokenizer') or {}, cfg.model.get('char_labels') or {}
    if tokenizer.get('update_tokenizer'):
        old, decoder = model.tokenizer.vocab_size, model.decoder.state_dict()
        model.change_vocabulary(new_tokenizer_dir=tokenizer.dir, new_tokenizer_type=tokenizer.type)
        if model.tokenizer.vocab_size == old:
            model.decoder.load_state_dict(decoder)
    elif labels.get('update_labels'):
        model.change_vocabulary(new_vocabulary=labels.labels)
    model.setup_training_data(cfg.model.train_ds)
    if cfg.model.get('validation_ds') is not None:
        model.setup_multiple_validation_data(cfg.model.validation_ds)
    if (cfg.model.get('test_ds') or {}).get('manifest_filepath') is not None:
        model.setup_multiple_test_data(cfg.model.test_ds)
    model.setup_optimization(cfg.model.optim)
    if cfg.model.get('spec_augment') is not None:
        model.spec_augment = ASRModel.from_config_dict(cfg.model.spec_augment)
    return model


def _let_learn(model, adaptation: bool) -> None:
    if not hasattr(model.encoder, 'adaptation'):
        raise ConfigError(f'adaptation={adaptation}: {type(model.encoder).__name__} has no memory; leave it null')
    if adaptation and not model.encoder.config.memory_layers:
        raise ConfigError('adaptation=true: the model has no memory (lact_layers=[]); leave it null')
    model.encoder.adaptation = adaptation
    with open_dict(model.cfg):
        model.cfg.encoder.adaptation = adaptation  # goes into the .nemo file


def _spelling(cfg: DictConfig) -> Spelling:
    """What the texts are held against: of the config, or of the model to fine-tune."""
    if not _fine_tunes(cfg):
        return of_config(cfg.model)
    path = cfg.get('init_from_nemo_model')
    if path is None:
        raise ConfigError(
            'the config has no model.encoder and no init_from_nemo_model: give init_from_nemo_model=FILE.nemo (or '
            '=starter) to fine-tune, or a config with an encoder'
        )
    tokenizer, labels = cfg.model.get('tokenizer') or {}, cfg.model.get('char_labels') or {}
    if tokenizer.get('update_tokenizer') and labels.get('update_labels'):
        raise ConfigError('model.tokenizer.update_tokenizer and model.char_labels.update_labels exclude each other')
    spelling = of_nemo_file(path)
    if tokenizer.get('update_tokenizer'):
        if not tokenizer.get('dir'):
            raise ConfigError('model.tokenizer.update_tokenizer needs model.tokenizer.dir, the folder of the new one')
        spelling.vocabulary = of_config(cfg.model).vocabulary
    elif labels.get('update_labels'):
        if not labels.get('labels'):
            raise ConfigError('model.char_labels.update_labels needs model.char_labels.labels, the new characters')
        spelling.vocabulary = Characters(labels.labels)
    return spelling


def _fit_to_machine(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    import torch

    if torch.cuda.is_available():
        return cfg
    given = {override.lstrip('+~').split('=')[0] for override in overrides}
    asked = str(cfg.trainer.get('accelerator'))
    if asked in ('gpu', 'cuda'):
        raise ConfigError(f'trainer.accelerator={asked}, but torch finds no GPU; use trainer.accelerator=auto')
    if asked not in ('auto', 'cpu', 'None'):
        return cfg  # mps, tpu: the user's business
    changes = {key: value for key, value in CPU_TRAINER.items() if f'trainer.{key}' not in given}
    return OmegaConf.merge(cfg, {'trainer': changes})


def _fit_to_lhotse(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """What Lhotse's endless loader needs of the trainer: batches that make an epoch, and no second sharing of rows."""
    steps, limit = cfg.trainer.get('max_steps'), cfg.trainer.get('limit_train_batches')
    given = {override.lstrip('+~').split('=')[0] for override in overrides}
    if not isinstance(steps, int) or steps < 1:
        raise ConfigError(f'trainer.max_steps={steps}: data with use_lhotse has no end; give the steps to train for')
    changes = {}
    if not isinstance(limit, int):
        if 'trainer.limit_train_batches' in given and limit is not None:
            raise ConfigError(
                f'trainer.limit_train_batches={limit}: data with use_lhotse has no end, so a share of it has none '
                f'either; give a number of batches, which then make an epoch'
            )
        changes['limit_train_batches'] = min(EPOCH_BATCHES, steps)
    if 'trainer.use_distributed_sampler' not in given:
        changes['use_distributed_sampler'] = False
    # Lhotse's thread for buckets is no daemon: it would keep the process alive after the training.
    data = {'concurrent_bucketing': cfg.model.train_ds.get('concurrent_bucketing', False)}
    for key in ('seed', 'shard_seed'):  # NeMo's loader seeds everything anew, the weights too, with its own 0
        if cfg.get('seed') is not None and cfg.model.train_ds.get(key) is None:
            data[key] = cfg.seed
    with open_dict(cfg):  # own configs may lack these keys
        return OmegaConf.merge(cfg, {'trainer': changes, 'model': {'train_ds': data}})


def _plain_manifests(dataset: DictConfig | ListConfig | None) -> list[str]:
    """Manifests that are local JSON files. Tarred and remote data, and Lhotse's own formats, are left to NeMo."""
    if dataset is None or dataset.get('is_tarred') or dataset.get('tarred_audio_filepaths'):
        return []
    if isinstance(dataset.get('input_cfg'), ListConfig):
        return [path for part in dataset.input_cfg for path in _plain_manifests(part)]
    paths = dataset.get('manifest_filepath')
    if paths is None:
        return []
    paths = list(paths) if isinstance(paths, ListConfig) else str(paths).split(',')
    paths = [path[0] if isinstance(path, ListConfig) and path else path for path in paths]  # [file, weight]
    return [p for p in paths if isinstance(p, str) and not any(mark in p for mark in ('://', '{', '_OP_'))]


def _check_data(cfg: DictConfig) -> None:
    """The check without audio of every plain manifest; says on stderr what does not stop the training."""
    spelling, seen, reports = _spelling(cfg), Seen(), {}
    for section in DATASETS[::-1]:  # the training set last: what it shares with the others is reported there
        dataset = cfg.model.get(section)
        for path in _plain_manifests(dataset):
            if path in reports:
                continue
            low, high = dataset.get('min_duration'), dataset.get('max_duration')
            try:
                (reports[path],) = check_manifests([path], spelling, low, high, seen=seen)
            except FileNotFoundError as error:
                raise FileNotFoundError(f'model.{section}.manifest_filepath={path}: no such file') from error
            _stop_if_useless(reports[path], f'model.{section}', low, high)
    if not all(report.clean for report in reports.values()):
        from rich.console import Console

        show(list(reports.values()), Console(stderr=True))


def _stop_if_useless(report: Report, section: str, low: float | None, high: float | None) -> None:
    path, found = report.path, report.found
    remedy = f'`nemo-lact data check {path} --fix` lists all such rows and writes a manifest without them'
    if not report.rows:
        raise ValueError(
            f'{section}.manifest_filepath: manifest {path} is empty; it needs one JSON object a line, '
            f'with audio_filepath, duration and text'
        )
    for kind, needs in (
        ('json', 'a manifest has one JSON object a line'),
        ('audio_filepath', "each row needs 'audio_filepath' and 'duration' (seconds)"),
        ('duration', "each row needs 'audio_filepath' and 'duration' (seconds)"),
        ('offset', 'seconds into the file'),
        ('missing', 'relative paths start from the folder of the manifest'),
    ):
        if kind in found:
            problem = f'{KINDS[kind][1]} in {found[kind].count} of {report.rows} rows ({found[kind].example})'
            error = FileNotFoundError if kind == 'missing' else ValueError
            raise error(f'{section}: {path}, line {found[kind].lines[0]}: {problem}; {needs}. {remedy}')
    if report.all_filtered:
        low, high = 0 if low is None else low, float('inf') if high is None else high
        raise ValueError(
            f'{section}: none of the {report.rows} rows of {path} is within min_duration={low} and '
            f'max_duration={high} (they have {report.shortest:g} to {report.longest:g} s); change the limits or cut '
            f'the recordings'
        )
    useless = {KINDS[kind][1]: found[kind] for kind in ('text', 'ctc') if kind in found}
    if section == 'model.train_ds' and sum(part.count for part in useless.values()) == report.rows:
        reasons = '; '.join(f'{what} in {part.count} ({part.example})' for what, part in useless.items())
        raise ValueError(f'{section}: none of the {report.rows} rows of {path} can be learned from: {reasons}')


def _check_loader(model) -> None:
    """Stop if the loader has no row left: with Lhotse, training would look for one for ever."""
    data = model.cfg.train_ds
    if data.get('use_lhotse'):
        one_pass = {'force_finite': True, 'shuffle': False, 'num_workers': 0, 'concurrent_bucketing': False}
        config = OmegaConf.create({**OmegaConf.to_container(data, resolve=True), **one_pass})
        if next(iter(model._setup_dataloader_from_config(config)), None) is None:
            raise _all_dropped(data)
    elif model._train_dl is None:
        raise ValueError('NeMo made no loader from model.train_ds; run with --verbose to see why')


def _all_dropped(data: DictConfig) -> ValueError:
    return ValueError(
        f'model.train_ds: the loader drops every row of {data.get("manifest_filepath") or "the data"}; look at '
        f'min_duration, max_duration, the limits on tokens (min_tps, max_tps, ...) and the texts'
    )


def _without_validation(missing: Sequence[str]) -> str:
    if any(key.startswith('model.validation_ds.') for key in missing):
        return '\nTo train without a validation set: ~model.validation_ds'
    return ''
