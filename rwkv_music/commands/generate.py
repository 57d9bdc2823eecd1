"""`generate`: continue a MIDI file, fill in bars and parts of it, or write a piece from scratch."""

import argparse

from rwkv_music.commands import common
from rwkv_music.errors import UserError, explained, plural
from rwkv_music.files import open_file


def add(commands) -> None:
    command = common.add_command(
        commands, "generate", "continue a .mid file, fill in bars and parts of it, or write a piece from scratch"
    )
    common.add_model(command, required=False)
    command.add_argument(
        "--prompt",
        type=common.path,
        metavar="IN.mid",
        help="piece to continue or fill in; without it, a piece is written from scratch",
    )
    command.add_argument(
        "--tag",
        action="append",
        default=[],
        metavar="COLUMN=VALUE",
        help="tag of the piece, such as composer=bach; needs a model trained on data with tags; can be repeated",
    )
    command.add_argument(
        "--context-bars",
        type=int,
        metavar="N",
        help="bars to take from the start of the prompt; with --fill or --add-part, bars to read on each side of the "
        "cells (default: 4; 8 with --fill or --add-part)",
    )
    common.add_number(command, "--bars", 8, "N", "bars to write; not used with --fill or --add-part")
    fill = command.add_argument_group(
        "filling in", "rewrite cells of the piece (a cell is one part in one bar); everything else stays as it is"
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
        help='a new part, in all bars unless a --fill names it, as in "program=32" or "program=drums name=Kit"; can be '
        "repeated",
    )
    fill.add_argument(
        "--control",
        action="append",
        metavar="SPEC",
        help='properties of the new notes, as in "density=low,register=high" or "polyphony=1 parts=bass"; needs --fill '
        "or --add-part; can be repeated",
    )
    command.add_argument(
        "--out",
        required=True,
        type=common.path,
        metavar="OUT.mid",
        help="output file; a piano roll is written beside it as .png",
    )
    common.add_number(command, "--count", 1, "K", "number of results; several are named OUT-1.mid, OUT-2.mid ...")
    common.add_number(command, "--temperature", 1.0, "X", "sampling temperature; 0: greedy")
    common.add_number(
        command, "--top-p", 1.0, "P", "sample from the most likely tokens with total probability P; 1: all"
    )
    common.add_number(command, "--top-k", 0, "K", "sample from the K most likely tokens; 0: all")
    common.add_number(command, "--min-p", 0.0, "P", "drop tokens less likely than P times the most likely one; 0: none")
    common.add_number(
        command,
        "--repetition-penalty",
        0.0,
        "X",
        "nats subtracted from a note's logit for each time that it was played recently; drums and rhythm are exempt",
    )
    common.add_number(command, "--repetition-window", 128, "N", "number of recent tokens that the penalty considers")
    common.add_number(command, "--seed", 0, "N", "seed of the random numbers")
    command.add_argument("--completion-only", action="store_true", help="write the completion without the prompt")
    command.add_argument("--wav", action="store_true", help="render a .wav beside each .mid with FluidSynth")
    command.add_argument(
        "--soundfont",
        type=common.path,
        metavar="FILE",
        help="SoundFont, .sf2 or .sf3; implies --wav (default: the system's)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rwkv_music.checkpoint.weights import SHIPPED_MODEL
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
        raise UserError("--fill and --add-part need a piece to write into: give it with --prompt FILE.")
    if options.control and not fills:
        raise UserError("--control needs cells to fill in: give --fill or --add-part, or drop --control.")
    if options.completion_only and fills:
        raise UserError(
            "--completion-only leaves the prompt out, but --fill and --add-part write into it: drop --completion-only."
        )
    new_parts = [parse_new_part(text) for text in options.add_part or ()]
    tags = parse_tags(options.tag)
    paths = completion_paths(options.out, options.count, options.prompt)
    soundfont = audio.check_audio(options.soundfont) if options.wav or options.soundfont else None
    if options.model is None:
        options.model = SHIPPED_MODEL
        print("No MODEL is given, so the included model is used.")
    common.check_model(options.model)
    if options.prompt:
        with explained(f"reading the prompt {options.prompt}"), open_file(options.prompt):
            pass
    model, codec, config, source = common.load(options.model, options.checkpoint, options.state)
    if fills and config is not None:
        check_infills(options.model, config)
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
            print(f"{path}: {plural(len(filling.cells), 'cell')} filled in with the weights of {source}{state}")
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
        context = plural(completion.context_bars, "bar")
        print(f"{path}: {context} of prompt, {completion.bars} generated with the weights of {source}{state}")
    return 0
