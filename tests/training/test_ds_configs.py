"""The DeepSpeed files that we ship: plain, and without a key that DeepSpeed would ignore.

Each is trained with elsewhere: zero1, zero2 and zero3 in test_training.py, the others in test_checkpoint.py, with
gradients summed in fp32; zeropp without its quantization, whose kernels are a GPU's.
"""

import json

import pytest
from deepspeed.runtime.precision_config import DeepSpeedBF16Config
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import DeepSpeedZeroOffloadOptimizerConfig

from tests.training.conftest import PROJECT

FILES = {path.stem: json.loads(path.read_text()) for path in (PROJECT / "ds_configs").glob("*.json")}
SECTIONS = {"bf16": DeepSpeedBF16Config, "zero_optimization": DeepSpeedZeroConfig}
# Of these DeepSpeed reads what belongs to the stage and passes over the rest without a word.
OF_STAGE_3_ALONE = ("stage3_", "zero_hpz_", "zero_quantized_")
OF_STAGES_1_AND_2_ALONE = ("allgather_", "round_robin_")


def names(config: type) -> set[str]:
    fields = config.model_fields
    return set(fields) | {field.alias for field in fields.values() if field.alias}


@pytest.mark.parametrize("name", FILES)
def test_deepspeed_knows_and_uses_every_key(name):
    file = FILES[name]
    assert file.keys() == SECTIONS.keys()
    for section, config in SECTIONS.items():
        assert file[section].keys() <= names(config)
    zero = file["zero_optimization"]
    assert zero.get("offload_optimizer", {}).keys() <= names(DeepSpeedZeroOffloadOptimizerConfig)
    foreign = OF_STAGES_1_AND_2_ALONE if zero["stage"] == 3 else OF_STAGE_3_ALONE
    assert not [key for key in zero if key.startswith(foreign)]
    assert DeepSpeedZeroConfig(**zero).stage == zero["stage"]


def test_all_that_the_design_names_are_there():
    assert FILES.keys() == {"zero1", "zero2", "zero3", "zero2_offload", "zero3_offload", "zeropp"}
