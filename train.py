"""Train an RWKV v8 on a prepared dataset.

    deepspeed train.py --data DATA --out RUN --deepspeed_config ds_configs/zero2.json --preset 0.1b

Without the launcher, `python train.py ...` trains in one process. See `--help` and README.md.
"""

import faulthandler
import os
import sys
import traceback

from rwkv_music.errors import SharedError, UserError
from rwkv_music.training.arguments import configure, parse
from rwkv_music.training.signals import CRASHED, INTERRUPTED, Stopped, leave


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, set the run up, and train.

    Returns:
        The exit status: 0 trained; 1 failed with a one-sentence error; 70 crashed or lost another rank; 75 stopped with
        a checkpoint by SIGTERM or SIGUSR1; 130 the same by Ctrl-C.
    """
    options = parse(arguments)
    first = os.environ.get("RANK", "0") == "0"
    try:
        config = configure(options)
        # Imported here, so that a wrong argument is reported without waiting for DeepSpeed.
        from rwkv_music.training.loop import train
        from rwkv_music.training.setup import setup

        train(setup(config, options.deepspeed_config, given=set(vars(options))))
    except UserError as error:
        # Before the process group exists every rank finds the error, and one per host prints it, as hosts may see
        # different files. Later it may concern one rank alone.
        alone = process_group_exists() and not isinstance(error, SharedError)
        first_of_host = os.environ.get("LOCAL_RANK", "0") == "0" and not process_group_exists()
        if first or first_of_host or alone:
            print(f"train.py: {error}", file=sys.stderr)
        return 1
    except Stopped as stop:
        if first or stop.on_every_rank:
            print(f"train.py: {stop}.", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt:
        print("train.py: interrupted.", file=sys.stderr)
        return INTERRUPTED
    except Exception:
        traceback.print_exc()
        return CRASHED
    return 0


def process_group_exists() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()


if __name__ == "__main__":
    faulthandler.enable()  # a crash in a kernel or a library shows its stack
    leave(main())
