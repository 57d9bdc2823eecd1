"""RWKV-7 weights in Hugging Face form: parameter names, tensor layouts and config.json of `transformers` models.

Sources: flash-linear-attention's fla/models/rwkv7 and utils/convert_from_rwkv7.py; rwkv7-hf's modeling_rwkv7.py.
"""

import re
from pathlib import Path

import torch
from torch import Tensor

from rwkv_music.checkpoint.tensors import Tensors, parameter_shapes
from rwkv_music.config import ModelConfig
from rwkv_music.errors import UserError
from rwkv_music.tokenizers.codec import Codec

HF_WEIGHTS = "model.safetensors"
HF_NAMES = {
    "emb.weight": "model.embeddings.weight",
    "ln_out.weight": "model.norm.weight",
    "ln_out.bias": "model.norm.bias",
    "head.weight": "lm_head.weight",
}
HF_MODULES = {"att": "attn", "ffn": "ffn", "ln0": "pre_norm", "ln1": "attn_norm", "ln2": "ffn_norm"}
HF_PROJECTIONS = {"receptance": "r_proj", "key": "k_proj", "value": "v_proj", "output": "o_proj", "ln_x": "g_norm"}
HF_GATES = {"0": "2.bias", "1": "0.weight", "2": "2.weight"}
TRANSPOSED = re.compile(r"(.*\.)?[wavg][12]")  # low-rank matrices: [in, out] in BlinkDL's files, [out, in] here

# Python files in the folder, with which AutoModelForCausalLM finds the model in the package rwkv7-hf. fla does not need
# them.
HF_MODULE_FILES = {
    "configuration_rwkv7.py": "from rwkv7_hf import RWKV7Config\n\n__all__ = ['RWKV7Config']\n",
    "modeling_rwkv7.py": (
        "from rwkv7_hf import RWKV7ForCausalLM, RWKV7Model\n\n__all__ = ['RWKV7ForCausalLM', 'RWKV7Model']\n"
    ),
}


def hf_name(name: str) -> str:
    """Return the Hugging Face name of the parameter that BlinkDL calls `name`."""
    if name in HF_NAMES:
        return HF_NAMES[name]
    _, layer, module, *rest = name.split(".")
    if module == "att":
        if gate := re.fullmatch(r"([wavg])([012])", rest[0]):
            rest = [f"{gate[1]}_lora.lora.{HF_GATES[gate[2]]}"]
        else:
            rest[0] = HF_PROJECTIONS.get(rest[0], rest[0])
    return ".".join(["model.layers", layer, HF_MODULES[module], *rest])


def hf_tensor(name: str, tensor: Tensor) -> Tensor:
    """Return parameter `name` in Hugging Face's layout.

    Low-rank matrices are transposed. Vectors [1, 1, C] become [C], except the token-shift mixes of time mixing.
    """
    if TRANSPOSED.fullmatch(name):
        return tensor.t().contiguous()
    is_token_shift = name.rsplit(".", 1)[-1].startswith("x_") and ".att." in name
    return tensor.flatten() if tensor.dim() == 3 and not is_token_shift else tensor


class HuggingFaceTensors:
    """The tensors of a Hugging Face RWKV-7 file, with BlinkDL's names and shapes (see `Tensors`).

    `path` is the path of the file, for error messages. Raises UserError if the file does not contain an RWKV-7 model.
    """

    def __init__(self, file: Tensors, path: Path) -> None:
        self._file = file
        self.shapes: dict[str, tuple[int, ...]] = {}
        found = file.shapes
        if len(found.get("model.embeddings.weight", ())) != 2:
            raise UserError(f"{path} is not an RWKV-7 model: give a folder written by export.")
        layers = {int(name.split(".")[2]) for name in found if re.match(r"model\.layers\.\d+\.", name)}
        # Parameter names depend only on the number of layers.
        config = ModelConfig(n_layer=max(layers, default=0) + 1, n_embd=64, vocab_size=1, channel_mix="x070")
        names = {hf_name(name): name for name in parameter_shapes(config)}
        self._names: dict[str, str] = {}
        for theirs, shape in found.items():
            ours = names.get(theirs, theirs)
            if TRANSPOSED.fullmatch(ours):
                shape = shape[::-1]
            elif theirs in names and len(shape) == 1 and not re.search(r"\.(weight|bias)$", ours):
                shape = (1, 1, *shape)
            self.shapes[ours], self._names[ours] = shape, theirs

    def read_into(self, out: Tensor, name: str, start: int = 0) -> None:
        theirs = self._names[name]
        if not TRANSPOSED.fullmatch(name):
            return self._file.read_into(out, theirs, start)
        whole = torch.empty(self._file.shapes[theirs], dtype=out.dtype)  # small, because its rank is low
        self._file.read_into(whole.view(-1), theirs)
        out.copy_(whole.t().reshape(-1)[start : start + out.numel()])


def hf_config(model: ModelConfig, codec: Codec | None, dtype: torch.dtype) -> dict:
    """Return the content of config.json for an x070 model, valid for both rwkv7-hf and fla."""
    tokens = (
        {} if codec is None else {f"{kind}_token_id": getattr(codec, f"{kind}_id") for kind in ("pad", "bos", "eos")}
    )
    return {
        "model_type": "rwkv7",
        "architectures": ["RWKV7ForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_rwkv7.RWKV7Config",
            "AutoModel": "modeling_rwkv7.RWKV7Model",
            "AutoModelForCausalLM": "modeling_rwkv7.RWKV7ForCausalLM",
        },
        "vocab_size": model.vocab_size,
        "hidden_size": model.n_embd,
        "hidden_ratio": model.dim_ffn / model.n_embd,
        "intermediate_size": model.dim_ffn,
        "num_hidden_layers": model.n_layer,
        "head_dim": model.head_size,
        "num_heads": model.n_head,
        "value_dim": [model.n_embd] * model.n_layer,
        "decay_low_rank_dim": model.decay_rank,
        "gate_low_rank_dim": model.gate_rank,
        "a_low_rank_dim": model.iclr_rank,
        "v_low_rank_dim": model.value_rank,
        "hidden_act": "sqrelu",
        "norm_eps": 1e-5,
        "norm_bias": True,
        "norm_first": True,
        "tie_word_embeddings": False,
        "torch_dtype": str(dtype).removeprefix("torch."),
        **tokens,
    }
