"""The commands of `python -m rwkv_music`, one module each.

`add(commands)` adds the command's parser to argparse's subparsers. `run(options)` runs the command and returns its exit
status. `common` contains functions that several commands use.
"""
