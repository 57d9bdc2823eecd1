"""AdamW's kernel against torch's own, and Muon's kernels and orthogonalization against the CPU's."""

import pytest
import torch

if not torch.cuda.is_available():
    pytest.skip("no CUDA GPU", allow_module_level=True)

from rwkv_music.training.deepspeed_engine.fast.adamw import adamw_
from rwkv_music.training.deepspeed_engine.muon import momentum_, orthogonalize, step_

OPTIONS = {"lr": 0.01, "beta1": 0.9, "beta2": 0.99, "eps": 1e-18, "weight_decay": 0.1}


def moments_after_steps(device: str, gradients: torch.Tensor, start: int, length: int) -> list[torch.Tensor]:
    """Masters, moments and weights after a step from each of `gradients`, on elements start.. of longer tensors."""
    torch.manual_seed(1)
    whole = [torch.randn(start + length + 8, device="cpu").to(device) for _ in range(3)]
    whole[1] *= 0.1
    whole[2] = whole[2].square()
    rounded = torch.zeros(start + length + 8, dtype=torch.bfloat16, device=device)
    masters, m, v, weights = (x[start : start + length] for x in (*whole, rounded))
    for t, gradient in enumerate(gradients.to(device), 1):
        scalars = (torch.tensor(float(x), device=device) for x in (t, 1 + 0.1 * t, t == 3))
        step, divisor, bad = scalars
        before = masters.clone()
        adamw_(masters, m, v, gradient.clone(), weights, step=step, divisor=divisor, bad=bad, **OPTIONS)
        assert torch.equal(masters, before) == (t == 3)
    neighbors = [x[edge].cpu() for x in (*whole, rounded) for edge in (slice(start), slice(start + length, None))]
    return [masters.cpu(), m.cpu(), v.cpu(), weights.cpu(), *neighbors]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("start, length", ((0, 4096), (0, 4099), (4, 1000), (1, 1000), (0, 3), (2, 1)))
def test_equal_to_torchs(start, length, dtype):
    torch.manual_seed(0)
    gradients = torch.randn(6, length).to(dtype)
    ours, theirs = (moments_after_steps(device, gradients, start, length) for device in ("cuda", "cpu"))
    for a, b in zip(ours, theirs, strict=True):
        # One place of bf16 apart where the masters, a little apart, round to different sides.
        torch.testing.assert_close(a, b, rtol=1e-5 if a.dtype == torch.float32 else 2**-7, atol=1e-6)


def after_muons_kernels(device: str, gradients: torch.Tensor, start: int, length: int, rounds: bool):
    """Momentum, gradients, masters and weights after steps, on elements start.. of longer tensors."""
    torch.manual_seed(1)
    whole = [torch.randn(start + length + 8, device="cpu").to(device) for _ in range(2)]
    rounded = torch.zeros(start + length + 8, dtype=torch.bfloat16, device=device)
    momentum, masters, weights = (x[start : start + length] for x in (*whole, rounded))
    for t, gradient in enumerate(gradients.to(device), 1):
        padded = torch.zeros(start + length, dtype=gradient.dtype, device=device)
        gradient = padded[start:].copy_(gradient)
        divisor, bad = (torch.tensor(float(x), device=device) for x in (1 + 0.1 * t, t == 3))
        if t == 3:
            gradient[0] = torch.inf
        before = momentum.clone(), masters.clone()
        momentum_(momentum, gradient, divisor, bad)
        assert gradient.isfinite().all()
        step_(masters, gradient.bfloat16(), weights if rounds else None, kept=0.99, rate=0.3, bad=bad)
        assert all(torch.equal(*pair) == (t == 3) for pair in zip(before, (momentum, masters), strict=True))
    return [x.float().cpu() for x in (momentum, gradient, *whole, rounded)]


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16))
@pytest.mark.parametrize("start, length", ((0, 4096), (0, 4099), (4, 1000), (1, 1000), (0, 3), (2, 1)))
def test_muons_kernels_are_those_of_the_cpu(start, length, dtype):
    torch.manual_seed(0)
    gradients = torch.randn(5, length).to(dtype)
    for rounds in (True, False):
        ours, theirs = (after_muons_kernels(device, gradients, start, length, rounds) for device in ("cuda", "cpu"))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=2**-7, atol=1e-2)
        assert bool(ours[-1].any()) == rounds


@pytest.mark.parametrize("shape", ((4, 768, 768), (2, 3072, 768), (1, 768, 3072)))
def test_matrices_orthogonalized_in_bf16_are_about_those_of_the_cpu_in_fp32(shape):
    torch.manual_seed(0)
    x = torch.randn(shape).bfloat16()
    ours, theirs = orthogonalize(x.cuda()).float().cpu(), orthogonalize(x.float())
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.flatten(), 0) > 0.99
    assert ours.norm() == pytest.approx(theirs.norm(), rel=0.05)
