"""Train an RWKV model on a prepared dataset.

    deepspeed train.py --data DATA --out RUN --deepspeed_config ds_configs/zero2.json --preset 0.1b

Without the launcher, `python train.py ...` trains in one process. See `--help` and README.md.
"""

import contextlib
import faulthandler
import os
import sys
import traceback

from rwkv_music.errors import OutputClosed, SharedError, UserError, checked_output
from rwkv_music.openmp import share_cores
from rwkv_music.system import ranks_of_this_host
from rwkv_music.training.arguments import configure, parse
from rwkv_music.training.signals import CRASHED, INTERRUPTED, Stopped, leave, stop_without_launcher


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line, set the run up, and train.

    Returns:
        The exit status: 0 trained; 1 failed with a one-sentence error; 70 crashed or lost another rank; 75 stopped by
        SIGTERM, SIGUSR1 or SIGHUP, with a checkpoint; 130 stopped by Ctrl-C, with a checkpoint if training had begun.
        Before training begins, SIGTERM, SIGUSR1 and SIGHUP kill the process.
    """
    first = os.environ.get("RANK", "0") == "0"
    try:
        with contextlib.ExitStack() as stack:
            if not first:  # the command line is the same on every rank, so only rank 0 prints help and errors
                nowhere = stack.enter_context(open(os.devnull, "w"))
                stack.enter_context(contextlib.redirect_stdout(nowhere))
                stack.enter_context(contextlib.redirect_stderr(nowhere))
            stack.enter_context(checked_output())
            options = parse(arguments)
        stop_without_launcher()
        share_cores(ranks_of_this_host())
        config = configure(options)
        # Imported here, so that a wrong argument is reported without waiting for DeepSpeed.
        from rwkv_music.training.loop import train
        from rwkv_music.training.setup import setup

        with checked_output(continues=True):  # training continues if standard output cannot be written
            train(setup(config, options.deepspeed_config, given=set(vars(options))))
    except OutputClosed:
        return 1
    except UserError as error:
        report(error, first)
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


def report(error: UserError, first: bool) -> None:
    """Print an error once, and make the ranks that wait for this rank end with the same error.

    Rank 0 (`first`) prints its errors. Another rank does not print an error that rank 0 also raises: a SharedError or,
    before the process group exists, an error that `share_error` has passed on. If `share_error` fails, one rank per
    host prints the error, because hosts may see different files.
    """
    if first:
        print(f"train.py: {error}", file=sys.stderr, flush=True)
    if isinstance(error, SharedError):
        return
    prints = True
    if not process_group_exists():
        prints = os.environ.get("LOCAL_RANK", "0") == "0"
        if os.environ.get("WORLD_SIZE", "1") != "1":
            from rwkv_music.training.process_group import share_error  # not at the top: torch takes seconds to import

            prints = not share_error(str(error)) and prints
    if prints and not first:
        print(f"train.py: {error}", file=sys.stderr)


def process_group_exists() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_initialized()


if __name__ == "__main__":
    faulthandler.enable()  # a crash in a kernel or a library shows its stack
    leave(main())
