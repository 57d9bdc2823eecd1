"""Train an RWKV v8 on a prepared dataset.

    deepspeed train.py --data DATA --out RUN --deepspeed_config ds_configs/zero2.json --preset 0.1b

Without the launcher, `python train.py ...` is a world of one. See `--help` and README.md.
"""

import faulthandler
import os
import sys
import traceback

from rwkv_music.errors import SharedError, UserError
from rwkv_music.training.arguments import configure, parse
from rwkv_music.training.signals import CRASHED, INTERRUPTED, Stopped, leave


def main(arguments: list[str] | None = None) -> int:
    """Parse, build the trainer, train.

    Returns the exit status: 0 trained, 1 could not, 70 crashed or lost another rank, 75 asked to stop and stopped with
    a checkpoint, 130 the same by Ctrl-C.
    """
    options = parse(arguments)
    first, trainer = os.environ.get("RANK", "0") == "0", None
    try:
        config = configure(options)
        from rwkv_music.training.loop import Trainer  # not before: a wrong argument need not wait for DeepSpeed

        trainer = Trainer(config, options.deepspeed_config, given=set(vars(options)))
        trainer.train()
        trainer.close()
    except UserError as error:
        # Before the ranks meet, each finds what does not fit by itself, and one of each machine says it: the machines
        # may not see the same files. Later it may be one rank's alone.
        alone = ranks_have_met() and not isinstance(error, SharedError)
        first_here = os.environ.get("LOCAL_RANK", "0") == "0" and not ranks_have_met()
        if first or first_here or alone:
            print(f"train.py: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        if first:
            print(f"train.py: {stop}.", file=sys.stderr)
        try:
            if trainer is not None:
                trainer.close()
        except UserError as error:  # of the curves; the checkpoint is whole
            print(f"train.py: {error}", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("train.py: interrupted" + (f" {trainer.where_it_stands()}" if trainer else "") + ".", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        if ranks_have_met() and sys.modules["rwkv_music.training.process_group"].is_loss_of_a_rank(error):
            where = f" {trainer.where_it_stands()}" if trainer else ""
            print(f"train.py: rank {os.environ.get('RANK')} lost another rank{where}.", file=sys.stderr)
        else:
            traceback.print_exc()
        return CRASHED
    return 0


def ranks_have_met() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()


if __name__ == "__main__":
    faulthandler.enable()  # a crash in a kernel or a library shows the lines that led there
    leave(main())
