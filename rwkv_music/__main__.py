"""`python -m rwkv_music COMMAND`: everything but training, which is `train.py`.

Exit status: 0 done, 1 could not be done (one sentence on stderr says why), 2 bad usage.
"""

import argparse
import os
import sys
from pathlib import Path

import rwkv_music
from rwkv_music.data.codecs import TOKENIZERS
from rwkv_music.errors import UserError


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
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for add in (_corpus, _prepare, _generate, _evaluate, _doctor):
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
    from rwkv_music.data.corpus import write_corpus

    report = write_corpus(options.name, options.out, workers=options.workers, limit=options.limit)
    print(f"{report.written:,} new files, {report.kept:,} scores there already, in {options.out}")
    for source, reason in report.failed:
        print(f"left out: {source}: {reason}")
    return 0


def _prepare(commands) -> None:
    command = commands.add_parser("prepare", help="turn folders of .mid files into a dataset")
    command.add_argument(
        "folders", nargs="+", type=Path, metavar="DIR", help="folders searched for .mid and .midi files"
    )
    command.add_argument(
        "--out", required=True, type=Path, metavar="DATA", help="dataset folder; an earlier dataset there is replaced"
    )
    command.add_argument(
        "--tokenizer", choices=TOKENIZERS, default="remi", help="how notes become tokens (default: remi)"
    )
    command.add_argument("--workers", type=int, metavar="N", help="processes (default: one a core)")
    command.add_argument(
        "--val-fraction", type=float, default=0.1, metavar="F", help="fraction of the pieces held out (default: 0.1)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the split (default: 0)")
    command.set_defaults(run=_run_prepare)


def _run_prepare(options: argparse.Namespace) -> int:
    from rwkv_music.data.prepare import prepare

    facts = prepare(
        options.folders,
        options.out,
        tokenizer=options.tokenizer,
        workers=options.workers,
        val_fraction=options.val_fraction,
        seed=options.seed,
    )
    for split, counts in facts["splits"].items():
        print(f"{split}: {counts['pieces']:,} pieces, {counts['tokens']:,} tokens, {counts['notes']:,} notes")
    for reason, count in facts["rejected"].items():
        print(f"left out: {count:,} {reason}")
    print(f"dataset: {options.out}; pieces.jsonl and rejected.jsonl there name every file")
    return 0


def _generate(commands) -> None:
    command = commands.add_parser("generate", help="complete a .mid file from its opening bars")
    command.add_argument(
        "run_folder", type=Path, metavar="RUN", help="run folder of train.py, or one of its checkpoints"
    )
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
        "--seed", type=int, default=0, metavar="N", help="the same seed gives the same notes (default: 0)"
    )
    command.set_defaults(run=_run_generate)


def _run_generate(options: argparse.Namespace) -> int:
    from rwkv_music import generation

    # What is wrong with the arguments is told before the model is loaded.
    sampling = generation.Sampling(options.temperature, options.top_p, options.top_k, options.min_p, options.seed)
    paths = generation.completion_paths(options.out, options.count)
    model, codec, _, step = _load(options.run_folder)
    completions = generation.complete_to_files(
        model,
        codec,
        options.prompt,
        options.out,
        context_bars=options.context_bars,
        bars=options.bars,
        count=options.count,
        sampling=sampling,
    )
    for path, completion in zip(paths, completions, strict=True):
        early = {"bars": "", "eos": " (the model ended the piece)", "budget": " (out of tokens)"}[completion.ended]
        print(f"{path}: {completion.context_bars} bars given, {completion.bars} completed{early}, by step {step}")
    return 0


def _evaluate(commands) -> None:
    command = commands.add_parser("evaluate", help="how well a run predicts a dataset, beside a bigram model")
    command.add_argument(
        "run_folder", type=Path, metavar="RUN", help="run folder of train.py, or one of its checkpoints"
    )
    command.add_argument(
        "--data", required=True, type=Path, metavar="DATA", help="dataset folder of the run's tokenizer"
    )
    command.add_argument("--batch-size", type=int, default=8, metavar="N", help="rows at once (default: 8)")
    command.set_defaults(run=_run_evaluate)


def _run_evaluate(options: argparse.Namespace) -> int:
    from rwkv_music.evaluation import as_table, evaluate

    model, codec, config, step = _load(options.run_folder)
    print(f"{options.run_folder} at step {step:,} on {options.data}")
    print(as_table(evaluate(model, codec, options.data, config.data.ctx_len, options.batch_size)))
    return 0


def _doctor(commands) -> None:
    command = commands.add_parser("doctor", help="what this machine has, what would fail, what to do")
    command.set_defaults(run=_run_doctor)


def _run_doctor(_options: argparse.Namespace) -> int:
    from rwkv_music import doctor

    return doctor.main()


def _load(run_folder: Path):
    """The run's model on the GPU if there is one, else on the CPU."""
    import torch

    from rwkv_music.training.checkpoint import load_model

    return load_model(run_folder, "cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    sys.exit(main())
