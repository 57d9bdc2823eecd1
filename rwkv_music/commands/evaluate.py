"""`evaluate`: compare a run's loss with that of n-gram models, and its generated music with real music."""

import argparse

from rwkv_music.commands import common
from rwkv_music.errors import plural


def add(commands) -> None:
    command = common.add_command(
        commands,
        "evaluate",
        "compare a run's loss with that of n-gram models, and the music that it writes with real music",
    )
    command.add_argument("run_folder", type=common.path, metavar="RUN", help="run folder or checkpoint")
    common.add_checkpoint(command)
    command.add_argument(
        "--data",
        required=True,
        type=common.path,
        metavar="DATA",
        help="dataset folder, prepared with the run's tokenizer",
    )
    common.add_state(command)
    common.add_number(command, "--batch-size", 8, "N", "rows per forward pass")
    common.add_number(
        command,
        "--samples",
        0,
        "K",
        "number of completions of held-out pieces to write and compare with the real bars; 0: none",
    )
    common.add_number(
        command,
        "--fills",
        0,
        "K",
        "number of fills of held-out pieces to write and compare with the real bars and with baselines; 0: none",
    )
    common.add_number(
        command,
        "--mirex",
        0,
        "K",
        "number of continuations of held-out pieces to write in the form of the MIREX task and compare with the real "
        "bars; 0: none",
    )
    common.add_number(
        command,
        "--context-bars",
        4,
        "N",
        "bars that the model reads before a completion, and on each side of a fill",
    )
    common.add_number(
        command,
        "--bars",
        8,
        "N",
        "bars of a completion; for --fills, number of consecutive bars in which cells are missing",
    )
    common.add_number(command, "--seed", 0, "N", "seed of the random numbers")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rwkv_music.evaluation import fills, holes, losses, mirex, tags
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
    model, codec, config, source = common.load_run(options.run_folder, options.checkpoint, options.state)
    if options.fills:
        check_infills(options.run_folder, config)
    # Flushed, so that an output that cannot be written is reported now and not after the evaluation.
    print(f"{options.run_folder} at {source}, on {options.data}", flush=True)
    data, ctx_len, batch_size = options.data, config.data.ctx_len, options.batch_size
    print(losses.as_table(losses.evaluate(model, codec, data, ctx_len, batch_size, bool(config.data.tbptt))))
    if isinstance(codec, Multitrack):
        print(f"\n{losses.parts_as_table(*losses.part_losses(model, codec, data, ctx_len, batch_size))}")
        if tagged := tags.tag_losses(model, codec, data):
            print(f"\n{tags.as_table(tagged)}")
    if config.data.infills:
        print(f"\n{holes.as_table(holes.hole_losses(model, codec, data))}")
    bars = {"context_bars": options.context_bars, "bars": options.bars}
    if options.samples:
        real, completed = sample_measures(model, codec, data, options.samples, sampling=sampling, **bars)
        print(
            f"\n{plural(options.bars, 'bar')} after {plural(options.context_bars, 'bar')} of context, "
            "mean +- standard deviation:"
        )
        print(compared([f"{len(real)} real", f"{len(completed)} completed"], [real, completed]))
    if options.fills:
        print(f"\n{fills.as_table(fills.evaluate_fills(model, codec, data, options.fills, sampling=sampling, **bars))}")
    if options.mirex:
        print(f"\n{mirex.as_table(mirex.evaluate_mirex(model, codec, data, options.mirex, sampling))}")
    return 0
