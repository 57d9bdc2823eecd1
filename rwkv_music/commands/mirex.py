"""`mirex`: continue a piano prompt in the format of the MIREX task."""

import argparse

from rwkv_music.commands import common
from rwkv_music.errors import UserError, plural


def add(commands) -> None:
    command = common.add_command(
        commands, "mirex", "continue a piano piece by twelve bars, in the JSON format of the MIREX 2025 task"
    )
    common.add_model(command)
    command.add_argument(
        "--prompt",
        required=True,
        type=common.path,
        metavar="IN.json",
        help="JSON file with four bars of 4/4, times in sixteenth notes: "
        '{"prompt": [{"start": 16, "pitch": 72, "duration": 6}, ...]}',
    )
    command.add_argument(
        "--out",
        required=True,
        type=common.path,
        metavar="OUT.json",
        help='output file, with the twelve bars as "generation"',
    )
    common.add_number(
        command, "--count", 1, "K", "number of continuations; several are named OUT-1.json, OUT-2.json ..."
    )
    common.add_number(command, "--temperature", 1.0, "X", "sampling temperature; 0: greedy")
    common.add_number(
        command, "--top-p", 1.0, "P", "sample from the most likely tokens with total probability P; 1: all"
    )
    common.add_number(command, "--seed", 0, "N", "seed of the random numbers")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rwkv_music.generation.mirex import continue_prompt, generation_paths, save_generations
    from rwkv_music.generation.sampling import Sampling
    from rwkv_music.midi.mirex import read_notes

    # Check the arguments before loading the model.
    sampling = Sampling(temperature=options.temperature, top_p=options.top_p, seed=options.seed)
    paths = generation_paths(options.out, options.count, options.prompt)
    prompt = read_notes(options.prompt)
    if not len(prompt):
        raise UserError(f"{options.prompt} has no notes: give a prompt with at least one.")
    common.check_model(options.model)
    model, codec, _, source = common.load(options.model, options.checkpoint, options.state)
    generations = continue_prompt(model, codec, prompt, options.count, sampling)
    save_generations(generations, paths)
    for path, notes in zip(paths, generations, strict=True):
        print(f"{path}: {plural(len(notes), 'note')} in twelve bars by {source}")
    return 0
