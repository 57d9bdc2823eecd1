"""The command line `python -m rwkv_music COMMAND`: everything except training, which is `train.py`.

Exit status: 0 success, 1 failure (with a one-sentence error on stderr), 2 invalid usage. Commands import what they need
when they run, so that help and errors appear without loading torch.
"""

import argparse
import io
import sys
from functools import partial
from pathlib import Path

import rwkv_music
from rwkv_music.config import LONGEST_NAME, name_too_long, not_empty
from rwkv_music.errors import OutputClosed, UserError, checked_output, explained
from rwkv_music.files import open_file
from rwkv_music.system import share_cores
from rwkv_music.tokenizers.registry import DEFAULT_TOKENIZER, TOKENIZERS

# Up to this width, one thread decodes a token about as fast as several threads do, and far faster on a busy host.
ONE_THREAD_WIDTH = 256


def main(arguments: list[str] | None = None) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: escape bytes of a path that are not text
    share_cores()
    name = "rwkv_music"
    try:
        with checked_output():
            options = _parser().parse_args(arguments)
            name = f"rwkv_music {options.command}"
            return options.run(options) or 0
    except OutputClosed:
        return 1
    except UserError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rwkv_music",
        description="Prepare data, generate music, and evaluate or export RWKV v8 models trained with train.py.",
    )
    parser.add_argument("--version", action="version", version=f"rwkv_music {rwkv_music.__version__}")
    exact = partial(argparse.ArgumentParser, allow_abbrev=False)  # a misspelt option is an error
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=exact)
    for add in (_corpus, _prepare, _generate, _play, _mirex, _evaluate, _export, _doctor):
        add(commands)
    return parser


def _corpus(commands) -> None:
    command = commands.add_parser("corpus", help="write real scores and free game music as .mid files")
    command.add_argument(
        "name",
        metavar="NAME",
        help="corpus of music21, such as bach or palestrina, or Debian package, such as freedoom; an unknown name "
        "prints the list",
    )
    command.add_argument(
        "--out",
        required=True,
        type=_path,
        metavar="DIR",
        help="output folder (for a package, DIR/NAME); scores that it already holds are skipped",
    )
    command.add_argument("--workers", type=int, metavar="N", help="number of processes (default: number of cores)")
    command.add_argument("--limit", type=int, metavar="N", help="write the first N scores only")
    command.set_defaults(run=_run_corpus)


def _run_corpus(options: argparse.Namespace) -> int:
    from rwkv_music.prepare.corpus import write_corpus

    report = write_corpus(options.name, options.out, workers=options.workers, limit=options.limit)
    print(f"{report.folder}: {report.written:,} files written, {report.kept:,} existing scores kept")
    for source, reason in report.failed:
        print(f"skipped: {source}: {reason}")
    return 0


def _prepare(commands) -> None:
    command = commands.add_parser("prepare", help="tokenize MIDI files and scores into a dataset")
    command.add_argument(
        "paths",
        nargs="+",
        type=_path,
        metavar="PATH",
        help="folder to search for MIDI files, scores (MusicXML, ABC, kern) and archives (.zip, .tar, .tar.gz, "
        ".tar.zst, .parquet), or one such file",
    )
    command.add_argument(
        "--out", required=True, type=_path, metavar="DATA", help="dataset folder; an existing dataset is replaced"
    )
    command.add_argument(
        "--tokenizer", choices=TOKENIZERS, default=DEFAULT_TOKENIZER, help=f"tokenizer (default: {DEFAULT_TOKENIZER})"
    )
    command.add_argument("--workers", type=int, metavar="N", help="number of processes (default: number of cores)")
    command.add_argument(
        "--column",
        metavar="NAME",
        help="column of .parquet files with the music (default: the only column of bytes)",
    )
    command.add_argument("--resume", action="store_true", help="continue an interrupted run of the same command")
    command.add_argument(
        "--metadata",
        type=_path,
        metavar="FILE",
        help="table of facts about the pieces: a .csv or .jsonl whose column `file`, `path` or `md5` identifies files",
    )
    command.add_argument(
        "--metadata-key", metavar="COLUMN", help="another column of the table that identifies files by path or MD5"
    )
    command.add_argument(
        "--tags",
        type=_columns,
        default=(),
        metavar="COLUMNS",
        help="columns of the table, or of .parquet files, that become tags, such as composer,genre; multitrack only",
    )
    _number(command, "--tag-min", 1, "N", "number of training pieces that a value needs to become a tag")
    command.add_argument(
        "--tag-folders",
        action="store_true",
        help="tag each piece with the name of the PATH that it is in, as its collection; multitrack only",
    )
    _number(command, "--val-fraction", 0.1, "F", "fraction of the pieces held out for validation, at least one piece")
    _number(
        command,
        "--seed",
        0,
        "N",
        "seed of the train/validation split; adding files moves no piece to the other split, except one that was the "
        "only piece of its split",
    )
    filters = command.add_argument_group("filters", "keep only some of the pieces; MIN or MAX may be omitted")
    filters.add_argument("--seconds", type=_bounds, metavar="MIN:MAX", help="duration in seconds")
    filters.add_argument("--notes-per-second", type=_bounds, metavar="MIN:MAX", help="mean number of notes per second")
    filters.add_argument("--tracks", type=_bounds, metavar="MIN:MAX", help="number of tracks with notes")
    filters.add_argument(
        "--programs",
        type=_programs,
        metavar="LIST",
        help="pieces that use only these General MIDI programs, 0 to 127, and 128 for drums, such as 0-7,40",
    )
    filters.add_argument(
        "--where",
        type=_condition,
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="pieces with this value in a column of the table, such as license=CC0; repeat it to allow other values or "
        "to add another column",
    )
    filters.add_argument(
        "--unique",
        action="store_true",
        help="one of the pieces with the same music, which can differ in format, key, tempo and loudness",
    )
    command.set_defaults(run=_run_prepare)


def _path(text: str) -> Path:
    """Parse a path."""
    not_empty(text)
    if name_too_long(text):
        raise argparse.ArgumentTypeError(f"the path has a name longer than {LONGEST_NAME} bytes")
    return Path(text)


def _bounds(text: str) -> tuple[float, float]:
    """Parse "2:60", "2:" or ":60" as (minimum, maximum)."""
    least, colon, most = text.partition(":")
    try:
        if not colon:
            raise ValueError("a single number")
        return float(least or 0), float(most or "inf")
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MIN:MAX, such as 10:600, 10: or :600") from None


def _columns(text: str) -> tuple[str, ...]:
    """Parse "composer,genre" as ("composer", "genre")."""
    return tuple(name.strip() for name in text.split(","))


def _condition(text: str) -> tuple[str, str]:
    """Parse "license=CC0" as ("license", "CC0")."""
    column, equals, value = text.partition("=")
    if not column or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not COLUMN=VALUE, such as license=CC0")
    return column, value


def _programs(text: str) -> tuple[int, ...]:
    """Parse "0-2,40" as (0, 1, 2, 40)."""
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

    where: dict[str, list[str]] = {}
    for column, value in options.where:
        where.setdefault(column, []).append(value)
    try:
        facts = prepare(
            options.paths,
            options.out,
            tokenizer=options.tokenizer,
            workers=options.workers,
            val_fraction=options.val_fraction,
            seed=options.seed,
            filters=Filters(options.seconds, options.notes_per_second, options.tracks, options.programs),
            metadata=options.metadata,
            metadata_key=options.metadata_key,
            tags=options.tags,
            tag_min=options.tag_min,
            where=where,
            unique=options.unique,
            tag_folders=options.tag_folders,
            column=options.column,
            resume=options.resume,
        )
    except KeyboardInterrupt:
        print("Repeat the command with --resume to continue.", file=sys.stderr)
        raise
    for split, counts in facts["splits"].items():
        print(f"{split}: {counts['pieces']:,} pieces, {counts['tokens']:,} tokens, {counts['notes']:,} notes")
    for reason, count in facts["rejected"].items():
        print(f"skipped: {count:,} {reason}")
    for suffix, count in facts["passed_over"].items():
        print(f"passed over: {count:,} {suffix or 'without suffix'}")
    for what, counts in facts["lost"].items():
        print(f"lost by the tokenizer: {counts['number']:,} {what} in {counts['pieces']:,} pieces")
    for column, counts in facts.get("tags", {}).get("columns", {}).items():
        print(
            f"tag {column}: {counts['values']:,} values in {counts['pieces']:,} pieces, "
            f"{counts['rare']:,} pieces with a value that is too rare"
        )
    if facts.get("tags", {}).get("unused"):
        print(f"tags: {facts['tags']['unused']:,} lines of {options.metadata} match no piece")
    print(f"dataset: {options.out} (every file is listed in pieces.jsonl or rejected.jsonl; overview: report.html)")
    return 0


def _generate(commands) -> None:
    command = commands.add_parser(
        "generate", help="continue a .mid file, fill in bars and parts of it, or write a piece from scratch"
    )
    _add_model(command)
    command.add_argument(
        "--prompt",
        type=_path,
        metavar="IN.mid",
        help="piece to continue or fill in; without it, a piece is written from scratch",
    )
    command.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="what the piece is, such as composer=bach, for a model of data prepared with --tags; can be repeated",
    )
    command.add_argument(
        "--context-bars",
        type=int,
        metavar="N",
        help="bars of the prompt to use; with --fill or --add-part, bars to read on each side (default: 4, or 8)",
    )
    _number(command, "--bars", 8, "N", "bars to add")
    fill = command.add_argument_group(
        "filling in", "write cells (a part in a bar) of the piece anew; everything else stays as it is"
    )
    fill.add_argument(
        "--fill",
        action="append",
        metavar="SPEC",
        help='cells to write: bars, parts or both, as in "bars=5-8", "parts=bass,drums" or "bars=5-8,12 parts=2"; '
        "can be repeated",
    )
    fill.add_argument(
        "--add-part",
        action="append",
        metavar="SPEC",
        help='a new part in all bars, as in "program=32" or "program=drums name=Kit"; can be repeated',
    )
    fill.add_argument(
        "--control",
        action="append",
        metavar="SPEC",
        help='what to write, as in "density=low,register=high" or "polyphony=1 parts=bass"; can be repeated',
    )
    command.add_argument(
        "--out",
        required=True,
        type=_path,
        metavar="OUT.mid",
        help="output file; a piano roll is written beside it as .png",
    )
    _number(command, "--count", 1, "K", "number of results; several are named OUT-1.mid, OUT-2.mid ...")
    _number(command, "--temperature", 1.0, "X", "sampling temperature; 0: greedy")
    _number(command, "--top-p", 1.0, "P", "sample from the most likely tokens with total probability P; 1: all")
    _number(command, "--top-k", 0, "K", "sample from the K most likely tokens; 0: all")
    _number(command, "--min-p", 0.0, "P", "drop tokens less likely than P times the most likely one; 0: none")
    _number(
        command,
        "--repetition-penalty",
        0.0,
        "X",
        "nats subtracted from a note for each recent repetition; drums and rhythm are exempt",
    )
    _number(command, "--repetition-window", 128, "N", "number of recent tokens that the penalty considers")
    _number(command, "--seed", 0, "N", "seed of the random numbers")
    command.add_argument("--completion-only", action="store_true", help="write the completion without the prompt")
    command.add_argument("--wav", action="store_true", help="render a .wav beside each .mid with FluidSynth")
    command.add_argument(
        "--soundfont", type=_path, metavar="FILE", help="SoundFont, .sf2 or .sf3; implies --wav (default: the system's)"
    )
    command.set_defaults(run=_run_generate)


def _run_generate(options: argparse.Namespace) -> int:
    import torch

    from rwkv_music.generation.completion import check_counts
    from rwkv_music.generation.completion_files import complete_to_files, completion_paths, fill_to_files
    from rwkv_music.generation.fill import check_infills
    from rwkv_music.generation.fill_request import parse_new_part
    from rwkv_music.generation.prompt_tags import parse_tags
    from rwkv_music.generation.sampling import Sampling
    from rwkv_music.midi import audio

    # Check the arguments before loading the model.
    sampling = Sampling(
        temperature=options.temperature,
        top_p=options.top_p,
        top_k=options.top_k,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        repetition_window=options.repetition_window,
        seed=options.seed,
    )
    fills = bool(options.fill or options.add_part)
    context_bars = (8 if fills else 4) if options.context_bars is None else options.context_bars
    check_counts(context_bars, options.bars, options.count)
    if fills and options.prompt is None:
        raise UserError("--fill and --add-part write into a piece: give it as --prompt.")
    if options.control and not fills:
        raise UserError("--control describes cells to fill in: give --fill or --add-part too.")
    if options.completion_only and fills:
        raise UserError("--completion-only leaves the prompt out, but --fill writes into it: drop one of the two.")
    new_parts = [parse_new_part(text) for text in options.add_part or ()]
    tags = parse_tags(options.tag)
    paths = completion_paths(options.out, options.count, options.prompt)
    soundfont = audio.check_audio(options.soundfont) if options.wav or options.soundfont else None
    _check_model(options.model)
    if options.prompt:
        with explained(f"reading the prompt {options.prompt}"), open_file(options.prompt):
            pass
    model, codec, config, source = _load_any(options.model, options.checkpoint, options.state)
    if fills and config is not None:
        check_infills(options.model, config)
    if model.device.type == "cpu" and model.config.n_embd <= ONE_THREAD_WIDTH:
        torch.set_num_threads(1)
    state = f" with the state of {options.state}" if options.state else ""
    if fills:
        fillings = fill_to_files(
            model,
            codec,
            options.prompt,
            options.out,
            fills=options.fill or (),
            new_parts=new_parts,
            controls=options.control or (),
            tags=tags,
            context_bars=context_bars,
            count=options.count,
            sampling=sampling,
        )
        for path, filling in zip(paths, fillings, strict=True):
            if soundfont:
                audio.render(filling.midi(), path.with_suffix(".wav"), soundfont)
            print(f"{path}: {len(filling.cells)} cells filled in by {source}{state}")
        return 0
    completions = complete_to_files(
        model,
        codec,
        options.prompt,
        options.out,
        context_bars=context_bars,
        bars=options.bars,
        count=options.count,
        tags=tags,
        sampling=sampling,
        completion_only=options.completion_only,
    )
    for path, completion in zip(paths, completions, strict=True):
        if soundfont:
            midi = completion.midi_alone() if options.completion_only else completion.midi()
            audio.render(midi, path.with_suffix(".wav"), soundfont)
        print(f"{path}: {completion.context_bars} bars of prompt, {completion.bars} generated by {source}{state}")
    return 0


def _play(commands) -> None:
    command = commands.add_parser(
        "play", help="open a page in the browser where a model continues, fills in and accompanies a .mid file"
    )
    command.add_argument(
        "models",
        nargs="*",
        type=_path,
        metavar="MODEL",
        help="run folder, checkpoint, or exported weights with their tokenizer file; two of them are compared blind",
    )
    command.add_argument("--follow", action="store_true", help="load each new checkpoint of a run that is training")
    command.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on; any other than the default lets other computers use the page (default: 127.0.0.1)",
    )
    _number(command, "--port", 8765, "N", "port to listen on; 0: a free one")
    command.add_argument("--no-browser", action="store_true", help="print the address without opening a browser")
    command.set_defaults(run=_run_play)


def _run_play(options: argparse.Namespace) -> int:
    try:
        from rwkv_music.play.server import serve
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn"):
            raise
        raise UserError(f"The page needs {error.name}: run `pip install 'rwkv-music[play]'`.") from None
    serve(
        options.models,
        host=options.host,
        port=options.port,
        follow=options.follow,
        browser=not options.no_browser,
    )
    return 0


def _mirex(commands) -> None:
    command = commands.add_parser("mirex", help="continue a piano prompt by twelve bars, in the JSON of the MIREX task")
    _add_model(command)
    command.add_argument(
        "--prompt",
        required=True,
        type=_path,
        metavar="IN.json",
        help='four bars of 4/4 in sixteenth notes, {"prompt": [{"start": 16, "pitch": 72, "duration": 6}, ...]}',
    )
    command.add_argument(
        "--out",
        required=True,
        type=_path,
        metavar="OUT.json",
        help='output file, with the twelve bars as "generation"',
    )
    _number(command, "--count", 1, "K", "number of continuations; several are named OUT-1.json, OUT-2.json ...")
    _number(command, "--temperature", 1.0, "X", "sampling temperature; 0: greedy")
    _number(command, "--top-p", 1.0, "P", "sample from the most likely tokens with total probability P; 1: all")
    _number(command, "--seed", 0, "N", "seed of the random numbers")
    command.set_defaults(run=_run_mirex)


def _run_mirex(options: argparse.Namespace) -> int:
    from rwkv_music.generation.mirex import continue_prompt, generation_paths, save_generations
    from rwkv_music.generation.sampling import Sampling
    from rwkv_music.midi.mirex import read_notes

    # Check the arguments before loading the model.
    sampling = Sampling(temperature=options.temperature, top_p=options.top_p, seed=options.seed)
    paths = generation_paths(options.out, options.count, options.prompt)
    prompt = read_notes(options.prompt)
    if not len(prompt):
        raise UserError(f"{options.prompt} has no notes: give a prompt with at least one.")
    _check_model(options.model)
    model, codec, _, source = _load_any(options.model, options.checkpoint, options.state)
    generations = continue_prompt(model, codec, prompt, options.count, sampling)
    save_generations(generations, paths)
    for path, notes in zip(paths, generations, strict=True):
        print(f"{path}: {len(notes):,} notes in twelve bars by {source}")
    return 0


def _evaluate(commands) -> None:
    command = commands.add_parser(
        "evaluate", help="compare a run's loss with that of n-gram models, and its completions with real music"
    )
    command.add_argument("run_folder", type=_path, metavar="RUN", help="run folder or checkpoint")
    _add_checkpoint(command)
    command.add_argument(
        "--data", required=True, type=_path, metavar="DATA", help="dataset folder, prepared with the run's tokenizer"
    )
    _add_state(command)
    _number(command, "--batch-size", 8, "N", "rows per forward pass")
    _number(
        command, "--samples", 0, "K", "number of completions of held-out pieces to compare with the real bars; 0: none"
    )
    _number(
        command,
        "--fills",
        0,
        "K",
        "number of fills of held-out pieces to compare with the real bars and with baselines; 0: none",
    )
    _number(
        command,
        "--mirex",
        0,
        "K",
        "number of continuations of held-out pieces in the form of the MIREX task to compare with the real bars; 0: "
        "none",
    )
    _number(command, "--context-bars", 4, "N", "bars of prompt per completion, and on each side of the bars of a fill")
    _number(command, "--bars", 8, "N", "generated bars per completion, and bars in which the holes of a fill lie")
    _number(command, "--seed", 0, "N", "seed of the completions, of the fills and of their holes")
    command.set_defaults(run=_run_evaluate)


def _run_evaluate(options: argparse.Namespace) -> int:
    from rwkv_music.evaluation import fills, holes, losses, mirex
    from rwkv_music.evaluation.completions import sample_measures
    from rwkv_music.generation.completion import check_counts
    from rwkv_music.generation.fill import check_infills
    from rwkv_music.generation.sampling import Sampling
    from rwkv_music.midi.measures import compared
    from rwkv_music.tokenizers.multitrack import Multitrack

    sampling = Sampling(seed=options.seed)
    check_counts(options.context_bars, options.bars, options.batch_size, "--batch-size")
    for flag, count in {"--samples": options.samples, "--fills": options.fills, "--mirex": options.mirex}.items():
        if count:
            check_counts(options.context_bars, options.bars, count, flag)
    model, codec, config, source = _load(options.run_folder, options.checkpoint, options.state)
    if options.fills:
        check_infills(options.run_folder, config)
    # Flushed, so that an output that cannot be written is reported now and not after the evaluation.
    print(f"{options.run_folder} at {source}, on {options.data}", flush=True)
    data, ctx_len, batch_size = options.data, config.data.ctx_len, options.batch_size
    print(losses.as_table(losses.evaluate(model, codec, data, ctx_len, batch_size, bool(config.data.tbptt))))
    if isinstance(codec, Multitrack):
        print(f"\n{losses.parts_as_table(*losses.part_losses(model, codec, data, ctx_len, batch_size))}")
    if config.data.infills:
        print(f"\n{holes.as_table(holes.hole_losses(model, codec, data))}")
    bars = {"context_bars": options.context_bars, "bars": options.bars}
    if options.samples:
        real, completed = sample_measures(model, codec, data, options.samples, sampling=sampling, **bars)
        print(f"\n{options.bars} bars after a context of {options.context_bars}, mean +- standard deviation:")
        print(compared([f"{len(real)} real", f"{len(completed)} completed"], [real, completed]))
    if options.fills:
        print(f"\n{fills.as_table(fills.evaluate_fills(model, codec, data, options.fills, sampling=sampling, **bars))}")
    if options.mirex:
        print(f"\n{mirex.as_table(mirex.evaluate_mirex(model, codec, data, options.mirex, sampling))}")
    return 0


def _export(commands) -> None:
    command = commands.add_parser("export", help="convert weights for the rwkv package, RWKV-LM, transformers or peft")
    command.add_argument("source", type=_path, metavar="RUN", help="run folder, checkpoint or weight file")
    _add_checkpoint(command)
    command.add_argument(
        "--format",
        choices=("pth", "safetensors", "hf", "state", "lora"),
        default="pth",
        help="output format. pth: BlinkDL's; safetensors: the same tensors; hf: folder for transformers, v7 only; "
        "state, lora: only what a tuned run trained, a .pth for RWKV-Runner or a folder for peft (default: pth)",
    )
    command.add_argument(
        "--out",
        required=True,
        type=_path,
        metavar="PATH",
        help="output file or folder; the tokenizer is written with it",
    )
    command.add_argument(
        "--dtype",
        choices=("bf16", "fp32"),
        default="bf16",
        help="dtype of the weights for pth, safetensors and hf (default: bf16)",
    )
    command.set_defaults(run=_run_export)


def _run_export(options: argparse.Namespace) -> int:
    from rwkv_music.checkpoint.export import DTYPES, export

    _check_model(options.source)
    source, described = _choose(options.source, options.checkpoint)
    if options.format in ("state", "lora"):
        from rwkv_music.checkpoint.export import export_trained

        tuned = export_trained(source, options.out, options.format)
        print(f"{options.out}: {options.format} of {options.source} at {described}, tuned on {tuned.init}")
        return 0
    weights = export(source, options.out, options.format, DTYPES[options.dtype])
    model, at = weights.config, "" if weights.step is None else f" at {described}"
    print(
        f"{options.out}: {model.channel_mix}, {model.n_layer} layers x {model.n_embd}, vocabulary "
        f"{model.vocab_size:,}, in {options.dtype}, from {options.source}{at}"
    )
    if weights.tokenizer is None:
        print("no tokenizer file was found with the weights, so none was written")
    return 0


def _doctor(commands) -> None:
    command = commands.add_parser("doctor", help="check this machine's hardware and software for training")
    command.set_defaults(run=_run_doctor)


def _run_doctor(_options: argparse.Namespace) -> int:
    from rwkv_music import doctor

    return doctor.main()


def _number(command: argparse.ArgumentParser, flag: str, default: float, metavar: str, text: str) -> None:
    """Add an option whose type is that of its default."""
    help_text = f"{text} (default: {default:g})"
    command.add_argument(flag, type=type(default), default=default, metavar=metavar, help=help_text)


def _add_model(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        type=_path,
        metavar="MODEL",
        help="run folder, checkpoint, or exported weights with their tokenizer file",
    )
    _add_checkpoint(command)
    _add_state(command)


def _check_model(path: Path) -> None:
    if not path.exists():
        raise UserError(f"There is no {path}: give a run folder, a checkpoint or exported weights.")


def _add_state(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--state",
        type=_path,
        metavar="STATE",
        help="tuned initial state: a run of --tune state on this model, or a .pth or .safetensors of states",
    )


def _add_checkpoint(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint",
        type=_checkpoint,
        metavar="best|last|STEP",
        help="checkpoint of the run folder. best: the one with the lowest validation loss, or the last one of a run "
        "without validation; last: the newest; or the number of its step (default: best)",
    )


def _checkpoint(text: str) -> str:
    """Parse best, last, or a step."""
    if text not in ("best", "last") and not (text.isascii() and text.isdecimal() and len(text) <= 8):
        raise argparse.ArgumentTypeError(f"{text!r} is not best, last or the number of a step")
    return text


def _choose(source: Path, which: str | None) -> tuple[Path, str]:
    """Return the checkpoint of a run folder, and its step with the reason of the choice, such as "step 200 (the last)".

    Exported weights are returned as they are, with their name.
    """
    from rwkv_music.checkpoint.run_folder import read_progress
    from rwkv_music.checkpoint.weights import chosen_checkpoint, is_exported

    if is_exported(source):
        if which is not None:
            raise UserError(f"{source} holds exported weights, not checkpoints: drop --checkpoint {which}.")
        return source, source.name
    with explained(f"reading {source}"):
        checkpoint, reason = chosen_checkpoint(source, which)
    step = f"step {read_progress(checkpoint).step:,}"
    return checkpoint, f"{step} ({reason})" if reason else step


def _load(run_folder: Path, which: str | None, state: Path | None):
    """Load a run as `load_model` does, on the GPU if there is one, and set the tuned state if one is given.

    Returns (model, codec, configuration, the step and why it was chosen).
    """
    import torch

    from rwkv_music.checkpoint.weights import load_model

    checkpoint, described = _choose(run_folder, which)
    model, codec, config, _ = load_model(checkpoint, "cuda" if torch.cuda.is_available() else "cpu")
    _set_state(model, checkpoint, state)
    return model, codec, config, described


def _load_any(source: Path, which: str | None, state: Path | None):
    """Load a run, a checkpoint or exported weights, and set the tuned state if one is given.

    Returns (model, codec, configuration or None for exported weights, what to call the weights in messages).
    """
    from rwkv_music.checkpoint.weights import find_codec, is_exported, load_pretrained

    if not is_exported(source):
        return _load(source, which, state)
    _choose(source, which)
    codec = find_codec(source)
    model = load_pretrained(source).requires_grad_(False)
    _set_state(model, source, state)
    return model, codec, None, source.name


def _set_state(model, source: Path, state: Path | None) -> None:
    if state is not None:
        from rwkv_music.checkpoint.tuning import set_states
        from rwkv_music.checkpoint.weights import tuned_states

        set_states(model, tuned_states(state, source), state)


if __name__ == "__main__":
    sys.exit(main())
