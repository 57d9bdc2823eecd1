"""Reading the tensors of a training checkpoint, written by any number of ranks under any ZeRO stage.

The files of a rank contain the fp32 master weights and the optimizer's moments of the parameter slices that its
optimizer held. The index lists the slices of every parameter. A checkpoint does not contain bf16 weights, which are the
rounded master weights. It contains no random state, because every random number in a step is a function of the seed and
of counters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from rwkv_music.checkpoint.run_folder import INDEX, contents_fault, moments_file, tensor_files, weights_file
from rwkv_music.checkpoint.safetensors_io import DamagedFile, TensorFile
from rwkv_music.checkpoint.tensors import UNREAD, read_whole
from rwkv_music.errors import UserError
from rwkv_music.files import parse_json, read_file


class SavedTensors:
    """The tensors of a checkpoint (see `Tensors`).

    With `verify`, the SHA-256 hashes of the files with master weights are checked. Raises DamagedFile if the index or a
    file is damaged or inconsistent, and OSError if a file cannot be read.
    """

    def __init__(self, checkpoint: Path, verify: bool = False) -> None:
        self._checkpoint = checkpoint
        self._files: dict[str, TensorFile] = {}
        if verify:
            weights = (name for name in tensor_files(checkpoint) if name.startswith("weights_"))
            if fault := contents_fault(checkpoint, weights):
                raise DamagedFile(fault)
        try:
            index = parse_json(read_file(checkpoint / INDEX))
            self.shapes = {name: tuple(shape) for name, shape in index["parameters"].items()}
            self.optimizer_steps = int(index["optimizer_steps"])
            self._slices = {
                name: sorted((int(start), int(length), int(rank)) for start, length, rank in slices)
                for name, slices in index["slices"].items()
            }
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            raise DamagedFile(f"{INDEX} cannot be read ({error})") from error

    def read_into(self, out: Tensor, name: str, start: int = 0, moment: str | None = None) -> None:
        """See `Tensors.read_into`. With `moment`, such as "exp_avg", read this moment instead of the weights."""
        done = 0
        for first, length, rank in self._slices.get(name, ()):
            begin, end = max(start + done, first), min(start + out.numel(), first + length)
            if begin == start + done and begin < end:
                file = self._file(moments_file(rank) if moment else weights_file(rank))
                key = f"{name}.{moment}" if moment else name
                file.read_into(out[done : done + end - begin], key, begin - first)
                done += end - begin
        if done != out.numel():
            raise DamagedFile(f"no file holds {name} from element {start + done:,} on")

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            self._files[name] = TensorFile(self._checkpoint / name)
        return self._files[name]


def load_weights(checkpoint: Path) -> dict[str, Tensor]:
    """Return the fp32 master weights of a checkpoint by name. Raises UserError if it is damaged."""
    with damage_as_user_error(checkpoint):
        saved = SavedTensors(checkpoint, verify=True)
        return {name: read_whole(saved, name) for name in saved.shapes if name not in UNREAD}


@contextmanager
def damage_as_user_error(checkpoint: Path) -> Iterator[None]:
    """Convert a DamagedFile that is raised in the block to a UserError that names `checkpoint`."""
    try:
        yield
    except DamagedFile as error:
        raise UserError(
            f"{checkpoint} is damaged ({error}): use an earlier checkpoint, or restore it from a copy."
        ) from error
