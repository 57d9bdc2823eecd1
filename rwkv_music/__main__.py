"""`python -m rwkv_music COMMAND`: everything but training, which is `train.py`.

Exit status: 0 done, 1 could not be done (one sentence on stderr says why), 2 bad usage.
"""

import argparse
import os
import sys
from functools import partial
from pathlib import Path

import rwkv_music
from rwkv_music.errors import UserError
from rwkv_music.tokenizers.registry import TOKENIZERS


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        return options.run(options) or 0
    except UserError as error:
        print(f"rwkv_music {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"rwkv_music {options.command}: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rwkv_music",
        description="RWKV v8 models of music: data, completions, checks. Training is train.py.",
    )
    parser.add_argument("--version", action="version", version=f"rwkv_music {rwkv_music.__version__}")
    exact = partial(argparse.ArgumentParser, allow_abbrev=False)  # what is misspelt is told, and not guessed at
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=exact)
    for add in (_corpus, _prepare, _generate, _evaluate, _export, _doctor):
        add(commands)
    return parser


def _corpus(commands) -> None:
    command = commands.add_parser("corpus", help="write real scores from music21's corpus as .mid files")
    command.add_argument(
        "name", metavar="NAME", help="bach, palestrina, ryansMammoth ...; an unknown name lists them all"
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="folder for the .mid files; what is there is skipped"
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    command.add_argument("--limit", type=int, metavar="N", help="write the first N scores only")
    command.set_defaults(run=_run_corpus)


def _run_corpus(options: argparse.Namespace) -> int:
    from rwkv_music.prepare.corpus import write_corpus

    report = write_corpus(options.name, options.out, workers=options.workers, limit=options.limit)
    print(f"{report.written:,} new files, {report.kept:,} scores there already, in {options.out}")
    for source, reason in report.failed:
        print(f"left out: {source}: {reason}")
    return 0


def _prepare(commands) -> None:
    command = commands.add_parser("prepare", help="turn folders and archives of .mid files into a dataset")
    command.add_argument(
        "paths",
        nargs="+",
        type=Path,
        metavar="PATH",
        help="folders searched for .mid and .midi, .zip and .tar.gz files",
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="DATA", help="dataset folder; an earlier dataset there is replaced"
    )
    command.add_argument(
        "--tokenizer", choices=TOKENIZERS, default="remi", help="how notes become tokens (default: remi)"
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    command.add_argument("--resume", action="store_true", help="go on where the same command was interrupted")
    command.add_argument(
        "--val-fraction", type=float, default=0.1, metavar="F", help="fraction of the pieces held out (default: 0.1)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the split (default: 0)")
    remi = command.add_argument_group("remi")
    remi.add_argument("--positions-per-beat", type=int, metavar="N", help="time grid (default: 24)")
    remi.add_argument("--velocities", type=int, metavar="N", help="loudness levels (default: 32)")
    remi.add_argument("--bpe", type=int, metavar="N", help="byte pairs, up to a vocabulary of N tokens (default: none)")
    filters = command.add_argument_group("filters", "what to keep; MIN or MAX may be left out")
    filters.add_argument("--seconds", type=_bounds, metavar="MIN:MAX", help="length of a piece in seconds")
    filters.add_argument("--notes-per-second", type=_bounds, metavar="MIN:MAX", help="notes a second")
    filters.add_argument("--tracks", type=_bounds, metavar="MIN:MAX", help="parts that have notes")
    filters.add_argument(
        "--programs",
        type=_programs,
        metavar="LIST",
        help="pieces of these General MIDI programs alone, counted from 0, drums are 128: 0-7,40 or 0-127",
    )
    command.set_defaults(run=_run_prepare)


def _bounds(text: str) -> tuple[float, float]:
    """ "2:60", "2:" or ":60" as (least, most)."""
    least, colon, most = text.partition(":")
    try:
        if not colon:
            raise ValueError("a single number")
        return float(least or 0), float(most or "inf")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:MAX, such as 10:600, 10: or :600") from None


def _programs(text: str) -> tuple[int, ...]:
    """ "0-2,40" as (0, 1, 2, 40)."""
    numbers: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            numbers.update(range(int(first), int(last or first) + 1))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of programs, such as 0-7,40") from None
    return tuple(sorted(numbers))


def _run_prepare(options: argparse.Namespace) -> int:
    from rwkv_music.midi.stats import Filters
    from rwkv_music.prepare.pipeline import prepare

    given = {"positions_per_beat": options.positions_per_beat, "n_velocities": options.velocities}
    try:
        facts = prepare(
            options.paths,
            options.out,
            tokenizer=options.tokenizer,
            options={name: value for name, value in given.items() if value is not None},
            bpe_vocab_size=options.bpe,
            workers=options.workers,
            val_fraction=options.val_fraction,
            seed=options.seed,
            filters=Filters(options.seconds, options.notes_per_second, options.tracks, options.programs),
            resume=options.resume,
        )
    except KeyboardInterrupt:
        print("the same command with --resume goes on from here", file=sys.stderr)
        raise
    for split, counts in facts["splits"].items():
        print(f"{split}: {counts['pieces']:,} pieces, {counts['tokens']:,} tokens, {counts['notes']:,} notes")
    for reason, count in facts["rejected"].items():
        print(f"left out: {count:,} {reason}")
    print(f"dataset: {options.out}; pieces.jsonl and rejected.jsonl there name every file, report.html shows them")
    return 0


def _generate(commands) -> None:
    command = commands.add_parser("generate", help="complete a .mid file from its opening bars")
    command.add_argument(
        "model",
        type=Path,
        metavar="MODEL",
        help="run folder of train.py, one of its checkpoints, or what `export` wrote, with the tokenizer beside it",
    )
    _add_state(command)
    command.add_argument("--prompt", required=True, type=Path, metavar="IN.mid", help="piece to complete")
    command.add_argument("--context-bars", type=int, default=4, metavar="N", help="bars of it to go by (default: 4)")
    command.add_argument("--bars", type=int, default=8, metavar="N", help="bars to add (default: 8)")
    command.add_argument(
        "--out", required=True, type=Path, metavar="OUT.mid", help="completion; its piano roll goes beside it as .png"
    )
    command.add_argument(
        "--count", type=int, default=1, metavar="K", help="completions; several are named OUT-1.mid ... (default: 1)"
    )
    command.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="X",
        help="above 1 wilder, 0 always the likeliest (default: 1)",
    )
    command.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens that sum to P (default: 1, all)",
    )
    command.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="draw from the K likeliest tokens (default: 0, all)"
    )
    command.add_argument(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="leave out tokens under P times the likeliest (default: 0)",
    )
    command.add_argument(
        "--repetition-penalty",
        type=float,
        default=0.0,
        metavar="X",
        help="nats that a key loses for each time it was struck lately; drums and rhythm lose nothing (default: 0)",
    )
    command.add_argument(
        "--repetition-window", type=int, default=128, metavar="N", help="tokens that count as lately (default: 128)"
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="the same seed gives the same notes (default: 0)"
    )
    command.add_argument(
        "--completion-only", action="store_true", help="write the completion without the bars that were given"
    )
    command.add_argument("--wav", action="store_true", help="write sound beside each .mid, through FluidSynth")
    command.add_argument(
        "--soundfont", type=Path, metavar="FILE", help="what it sounds like, .sf2 or .sf3 (default: the system's)"
    )
    command.set_defaults(run=_run_generate)


def _run_generate(options: argparse.Namespace) -> int:
    from rwkv_music.checkpoint.weights import is_exported
    from rwkv_music.generation import completion
    from rwkv_music.generation.sampling import Sampling
    from rwkv_music.midi import audio

    # What is wrong with the arguments is told before the model is loaded.
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        repetition_window=options.repetition_window,
        seed=options.seed,
    )
    completion.check_counts(options.context_bars, options.bars, options.count)
    paths = completion.completion_paths(options.out, options.count, options.prompt)
    soundfont = audio.check_audio(options.soundfont) if options.wav else None
    if not options.model.exists():
        raise UserError(f"There is no {options.model}: give a run folder of train.py, or what `export` wrote.")
    if not options.prompt.is_file():
        raise UserError(f"There is no file {options.prompt}: give a .mid file as --prompt.")
    if is_exported(options.model):
        model, codec = _load_exported(options.model, options.state)
        made_by = options.model.name
    else:
        model, codec, _, step = _load(options.model, options.state)
        made_by = f"step {step}"
    completions = completion.complete_to_files(
        model,
        codec,
        options.prompt,
        options.out,
        context_bars=options.context_bars,
        bars=options.bars,
        count=options.count,
        sampling=sampling,
        completion_only=options.completion_only,
    )
    for path, made in zip(paths, completions, strict=True):
        if soundfont:
            midi = made.midi_alone() if options.completion_only else made.midi()
            audio.render(midi, path.with_suffix(".wav"), soundfont)
        state = f", from the state of {options.state}" if options.state else ""
        print(f"{path}: {made.context_bars} bars given, {made.bars} completed, by {made_by}{state}")
    return 0


def _evaluate(commands) -> None:
    command = commands.add_parser(
        "evaluate", help="how well a run predicts a dataset, beside n-gram models, and what its completions are like"
    )
    command.add_argument(
        "run_folder", type=Path, metavar="RUN", help="run folder of train.py, or one of its checkpoints"
    )
    command.add_argument(
        "--data", required=True, type=Path, metavar="DATA", help="dataset folder of the run's tokenizer"
    )
    _add_state(command)
    command.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows at once (default: 8)")
    command.add_argument(
        "--samples",
        type=int,
        default=0,
        metavar="K",
        help="completions of held-out pieces to measure beside the real ones (default: 0, none)",
    )
    command.add_argument(
        "--context-bars", type=int, default=4, metavar="N", help="bars that a sample is given (default: 4)"
    )
    command.add_argument("--bars", type=int, default=8, metavar="N", help="bars of a sample (default: 8)")
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the samples (default: 0)")
    command.set_defaults(run=_run_evaluate)


def _run_evaluate(options: argparse.Namespace) -> int:
    from rwkv_music.evaluation import as_table, evaluate, sample_measures
    from rwkv_music.generation.completion import check_counts
    from rwkv_music.generation.sampling import Sampling
    from rwkv_music.midi.measures import compared

    sampling = Sampling(seed=options.seed)
    if options.samples:
        check_counts(options.context_bars, options.bars, options.samples, "--samples")
    model, codec, config, step = _load(options.run_folder, options.state)
    print(f"{options.run_folder} at step {step:,} on {options.data}")
    print(
        as_table(evaluate(model, codec, options.data, config.data.ctx_len, options.batch_size, bool(config.data.tbptt)))
    )
    if options.samples:
        bars = {"context_bars": options.context_bars, "bars": options.bars}
        real, completed = sample_measures(model, codec, options.data, options.samples, sampling=sampling, **bars)
        print(f"\n{options.bars} bars after {options.context_bars}, mean +- deviation over the pieces:")
        print(compared([f"{len(real)} real", f"{len(completed)} completed"], [real, completed]))
    return 0


def _export(commands) -> None:
    command = commands.add_parser(
        "export", help="write a run's weights for the `rwkv` package, RWKV-LM or transformers"
    )
    command.add_argument(
        "source", type=Path, metavar="RUN", help="run folder of train.py, one of its checkpoints, or a file of weights"
    )
    command.add_argument(
        "--format",
        choices=("pth", "safetensors", "hf", "state", "lora"),
        default="pth",
        help="pth: BlinkDL's file; safetensors: the same names; hf: a folder for transformers, v7 alone; of a tuned "
        "run what it tuned alone: state, a .pth for RWKV-Runner, or lora, a folder for peft (default: pth)",
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="PATH", help="file or folder to write; the tokenizer goes with it"
    )
    command.add_argument(
        "--dtype", choices=("bf16", "fp32"), default="bf16", help="of every tensor (default: bf16, as RWKV's files are)"
    )
    command.set_defaults(run=_run_export)


def _run_export(options: argparse.Namespace) -> int:
    from rwkv_music.checkpoint.export import DTYPES, export

    if options.format in ("state", "lora"):
        from rwkv_music.checkpoint.export import export_trained

        tuned = export_trained(options.source, options.out, options.format)
        print(f"{options.out}: the {options.format} of {options.source}, tuned on {tuned.init}")
        return 0
    weights = export(options.source, options.out, options.format, DTYPES[options.dtype])
    model, step = weights.config, "" if weights.step is None else f" of step {weights.step:,}"
    print(
        f"{options.out}: {model.channel_mix}, {model.n_layer} layers x {model.n_embd}, vocabulary "
        f"{model.vocab_size:,}, in {options.dtype}, the weights{step} of {options.source}"
    )
    if weights.tokenizer is None:
        print("no tokenizer lay with them, so none was written")
    return 0


def _doctor(commands) -> None:
    command = commands.add_parser("doctor", help="what this machine has, what would fail, what to do")
    command.set_defaults(run=_run_doctor)


def _run_doctor(_options: argparse.Namespace) -> int:
    from rwkv_music import doctor

    return doctor.main()


def _add_state(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--state",
        type=Path,
        metavar="STATE",
        help="initial state to begin with: a run of --tune state on this model, or a .pth or .safetensors of states",
    )


def _load(run_folder: Path, state: Path | None):
    """The run's model on the GPU if there is one, else on the CPU, with the tuned state if one is named; its codec,
    configuration and step."""
    import torch

    from rwkv_music.checkpoint.weights import load_model

    loaded = load_model(run_folder, "cuda" if torch.cuda.is_available() else "cpu")
    _take_state(loaded[0], run_folder, state)
    return loaded


def _load_exported(path: Path, state: Path | None):
    """The model of a file or an exported folder, as `_load` does a run's, and the codec that lies with it."""
    from rwkv_music.checkpoint.weights import find_codec, load_pretrained

    codec = find_codec(path)
    model = load_pretrained(path).requires_grad_(False)
    _take_state(model, path, state)
    return model, codec


def _take_state(model, source: Path, state: Path | None) -> None:
    if state is not None:
        from rwkv_music.checkpoint.tuning import set_states
        from rwkv_music.checkpoint.weights import tuned_states

        set_states(model, tuned_states(state, source), state)


if __name__ == "__main__":
    sys.exit(main())
