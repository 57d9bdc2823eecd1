"""`export`: convert weights for other programs."""

import argparse

from rwkv_music.commands import common
from rwkv_music.errors import plural


def add(commands) -> None:
    command = common.add_command(
        commands, "export", "convert weights for the rwkv package, RWKV-LM, transformers or peft"
    )
    command.add_argument("source", type=common.path, metavar="RUN", help="run folder, checkpoint or weight file")
    common.add_checkpoint(command)
    command.add_argument(
        "--format",
        choices=("pth", "safetensors", "hf", "state", "lora"),
        default="pth",
        help="output format. pth: a .pth file in BlinkDL's format; safetensors: the same tensors in a .safetensors "
        "file; hf: a folder for transformers, v7 only; state: the tuned initial state, a .pth file for RWKV-Runner; "
        "lora: the adapters, a folder for peft (default: pth)",
    )
    command.add_argument(
        "--out",
        required=True,
        type=common.path,
        metavar="PATH",
        help="output file or folder; the tokenizer is written with the weights",
    )
    command.add_argument(
        "--dtype",
        choices=("bf16", "fp32"),
        default="bf16",
        help="dtype of the weights for pth, safetensors and hf (default: bf16)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    from rwkv_music.checkpoint.export import DTYPES, export, export_trained

    common.check_model(options.source)
    source, described = common.choose_weights(options.source, options.checkpoint)
    if options.format in ("state", "lora"):
        tuned = export_trained(source, options.out, options.format)
        print(f"{options.out}: {options.format} of {options.source} at {described}, tuned on {tuned.init}")
        return 0
    weights = export(source, options.out, options.format, DTYPES[options.dtype])
    model, at = weights.config, "" if weights.step is None else f" at {described}"
    print(
        f"{options.out}: {model.channel_mix}, {plural(model.n_layer, 'layer')} x {model.n_embd}, vocabulary "
        f"{model.vocab_size:,}, in {options.dtype}, from {options.source}{at}"
    )
    if weights.tokenizer is None:
        print("no tokenizer file was found with the weights, so none was written")
    return 0
