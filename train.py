"""Train an RWKV v8 on a prepared dataset.

    deepspeed train.py --data DATA --out RUN --deepspeed_config ds_configs/zero2.json --preset 0.1b

Without the launcher, `python train.py ...` is a world of one. See `--help` and README.md.
"""

import argparse
import os
import sys

from rwkv_music.config import PRESETS, DataConfig, ModelConfig, RunConfig, TrainConfig, add_arguments, from_arguments
from rwkv_music.errors import UserError


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train an RWKV v8 on a prepared dataset.", allow_abbrev=False)
    parser.add_argument("--deepspeed_config", required=True, metavar="FILE", help="DeepSpeed JSON file, such as ds_configs/zero2.json")
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="layers x width: " + ", ".join(
        f"{name} {p['n_layer']} x {p['n_embd']}" for name, p in PRESETS.items()) + " (default: tiny)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the launcher passes it; the environment says the same
    add_arguments(parser, DataConfig, required=("data",))
    add_arguments(parser, TrainConfig, required=("out",))
    add_arguments(parser, ModelConfig, skip=("vocab_size",))
    return parser.parse_args(arguments)


def main() -> int:
    arguments = parse()
    trainer = None
    try:
        config = RunConfig(
            from_arguments(ModelConfig, arguments, **PRESETS[arguments.preset]),
            from_arguments(DataConfig, arguments),
            from_arguments(TrainConfig, arguments),
        )
        from rwkv_music.training.trainer import Trainer  # after the arguments: --help need not wait for DeepSpeed

        trainer = Trainer(config, arguments.deepspeed_config, given=set(vars(arguments)))
        trainer.train()
    except UserError as error:
        # What does not fit together is found by every rank alike and said once; what breaks later is said by whom it breaks.
        if trainer is not None or os.environ.get("RANK", "0") == "0":
            print(f"train.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
