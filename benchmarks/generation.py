"""Measure the speed and the memory of generation, and check that samples are well-formed and have the requested bars.

    python benchmarks/generation.py                     # all parts, on a GPU if there is one
    python benchmarks/generation.py --only samples      # only the 1,000 samples of a barely trained model

- speed: tokens per second of a preset, for one piece and for many at once. They include the grammar's masks and the
  processing of every token on the CPU. For comparison, the training model is called once per token. On a GPU, 0.1b must
  reach 1,000 tokens per second for one piece and 60,000 for 512 pieces; on two CPU cores, 60 for one piece.
- speed, on a CPU: also the speed of the `rwkv` package in fp32 with the same weights, in turns with this project. This
  project must be 1.6 times as fast. The bytes that a token reads are compared with the memory bandwidth of a copy.
- memory: bytes held by the process (or the GPU) after 1,000 and after 100,000 tokens of a tiny model.
- samples: with each tokenizer, a tiny model is trained for a few steps on its own prompt, and then samples at
  temperature 1.5. Every file is read with mido to check that all notes end and to count the bars.

The weights are random, which does not affect the speed. Writes results/generation_cpu.json or generation_cuda.json.
With --only, the file name also has the name of the part. The speeds of a CPU that other programs use are not written.
Exit status 1 if a requirement is not met."""

import argparse
import io
import itertools
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import mido
import numpy as np
import report
import torch

from rwkv_music.config import PRESETS, ModelConfig
from rwkv_music.generation.completion import Completion, complete
from rwkv_music.generation.decoder import ModelDecoder
from rwkv_music.generation.prompt_file import read_opening
from rwkv_music.generation.sampling import Sampling
from rwkv_music.generation.token_generator import TokenGenerator
from rwkv_music.midi.notes import read_notes
from rwkv_music.midi.time import bar_ticks
from rwkv_music.model_v8 import RWKV
from rwkv_music.ops import decode_cpu
from rwkv_music.progress import progress_bar
from rwkv_music.tokenizers.codec import Codec, Piece
from rwkv_music.tokenizers.registry import make_codec

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
REQUIRED = {"cpu": {1: 60}, "cuda": {1: 1_000, 512: 60_000}}  # tokens per second by number of rows, 0.1b
REQUIRED_RATIO = 1.6  # tokens per second over those of the `rwkv` package, 0.1b on a CPU
QUIET_LOAD = 1.5  # load average of the last minute up to which a CPU counts as quiet
PROMPT_TOKENS = 512
PARTS = ("speed", "memory", "samples")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="0.1b", help="model of the speed part (default: 0.1b)")
    parser.add_argument(
        "--tokenizer", default="midi-llm", help="tokenizer of the speed part (default: midi-llm, 20,096 tokens)"
    )
    parser.add_argument("--only", choices=PARTS, help="run only this part")
    parser.add_argument("--samples", type=int, default=1000, help="samples per tokenizer (default: 1000)")
    parser.add_argument(
        "--out", default=report.RESULTS, metavar="DIR", help="output folder (default: benchmarks/results)"
    )
    options = parser.parse_args()
    figures, passed = {}, True
    load = os.getloadavg()[0]
    if options.only in (None, "speed"):
        figures["speed"] = speeds(options.preset, make_codec(options.tokenizer))
        required = REQUIRED[DEVICE.type] if options.preset == "0.1b" else {}
        passed &= all(figures["speed"][str(rows)]["tokens_per_second"] >= rate for rows, rate in required.items())
        if required and DEVICE.type == "cpu":
            passed &= figures["speed"]["rwkv_package"]["ratio"] >= REQUIRED_RATIO
    if options.only in (None, "memory"):
        figures["memory"] = memory()
        passed &= figures["memory"]["bytes_grown"] < 2**22
    if options.only in (None, "samples"):
        figures["samples"] = {name: samples(make_codec(name), options.samples) for name in ("multitrack", "midi-llm")}
        passed &= all(
            found["well_formed"] == found["to_the_bar"] == options.samples for found in figures["samples"].values()
        )
    name = f"generation_{DEVICE.type}" + (f"_{options.only}" if options.only else "")
    if "speed" in figures and DEVICE.type == "cpu" and load >= QUIET_LOAD:
        print(f"{name}.json is not written: the load average was {load:.1f} at the start.")
    else:
        print(report.write(name, figures, options.out))
    return 0 if passed else 1


def make_model(codec: Codec, preset: str) -> RWKV:
    """Return a model with random weights, in bf16 on a GPU."""
    torch.manual_seed(0)
    model = RWKV(ModelConfig(**PRESETS[preset], vocab_size=codec.vocab_size)).requires_grad_(False)
    return model.to(DEVICE, torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)


def speeds(preset: str, codec: Codec) -> dict:
    """Return tokens per second over 5 runs, and milliseconds to the first token, by number of rows."""
    model = make_model(codec, preset)
    prompt = np.full(PROMPT_TOKENS, codec.bos_id)
    piece = Piece(prompt, np.array([1]))
    vocabulary = codec.token_properties
    found = {
        "preset": preset,
        "tokenizer": codec.name,
        "vocabulary": codec.vocab_size,
        "threads": torch.get_num_threads(),
    }
    for rows in (1, 8, 64, 512) if DEVICE.type == "cuda" else (1, 8):
        grammar = codec.grammar(piece, rows)
        generator = TokenGenerator(model, rows, Sampling(), grammar.tables, vocabulary.keys)
        n = 500 if DEVICE.type == "cuda" else 40
        rates, waits = [], []
        for _ in range(5):
            start = time.perf_counter()
            tokens = generator.generate(prompt, codec.grammar(piece, rows))
            next(tokens)
            begun = time.perf_counter()
            for _ in itertools.islice(tokens, n):
                pass
            rates.append(rows * n / (time.perf_counter() - begun))
            waits.append(1000 * (begun - start))
        found[str(rows)] = {
            "tokens_per_second": round(statistics.median(rates), 1),
            "lowest": round(min(rates), 1),
            "highest": round(max(rates), 1),
            "first_token_ms": round(statistics.median(waits), 1),
            "model_called_for_each_token": round(called_for_each(model, rows, n // 4), 1),
        }
        print(f"{preset}, {rows} at once: {found[str(rows)]}", flush=True)
        del generator, tokens
    if DEVICE.type == "cpu":
        found["rwkv_package"] = beside_package(model, codec)
        print(f"{preset}, the rwkv package in fp32: {found['rwkv_package']}", flush=True)
    return found


def beside_package(model: RWKV, codec: Codec, rounds: int = 9, n: int = 20) -> dict:
    """Return the medians over turns of this project, of the `rwkv` package and of copying memory.

    A turn of this project or of the package is n tokens of one piece. The package only runs the model, without sampling
    or a grammar, and without DeepEmbed, which costs one product per channel. A ratio is computed from two turns of the
    same round; `ratio` is the median over the rounds. Bandwidths are in GB/s; a copy reads and writes each byte.
    """
    os.environ.update(RWKV_V7_ON="1", RWKV_JIT_ON="1", RWKV_CUDA_ON="0")
    from rwkv.model import RWKV as Package  # reads these variables when it is imported

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        torch.save({k: v for k, v in model.state_dict().items() if ".enn." not in k}, f"{path}.pth")
        package = Package(model=str(path), strategy="cpu fp32")
    piece = Piece(np.full(1, codec.bos_id), np.array([1]))
    grammar = codec.grammar(piece)
    generator = TokenGenerator(model, 1, Sampling(), grammar.tables, codec.token_properties.keys)
    tokens, state = generator.generate(piece.ids, grammar), None
    source = torch.zeros(2**26)
    target = source.clone()
    rates: dict[str, list[float]] = {"ours": [], "package": [], "copy": []}
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in itertools.islice(tokens, n):
            pass
        rates["ours"].append(n / (time.perf_counter() - start))
        start = time.perf_counter()
        for _ in range(n):
            _, state = package.forward(codec.bos_id, state)
        rates["package"].append(n / (time.perf_counter() - start))
        start = time.perf_counter()
        target.copy_(source)
        rates["copy"].append(2 * source.nbytes / (time.perf_counter() - start) / 1e9)
    medians = {name: statistics.median(values) for name, values in rates.items()}
    weights = decode_cpu.packed(model)
    gb = (weights.matrices.nbytes + weights.vectors.nbytes + model.init_state(1).wkv.nbytes) / 1e9
    return {
        "tokens_per_second": round(medians["package"], 1),
        "ours": round(medians["ours"], 1),
        "ratio": round(statistics.median(a / b for a, b in zip(rates["ours"], rates["package"], strict=True)), 2),
        "gb_read_per_token": round(gb, 4),
        "gb_per_second_read": round(gb * medians["ours"], 1),
        "gb_per_second_copy": round(medians["copy"], 1),
    }


def called_for_each(model: RWKV, rows: int, n: int) -> float:
    """Return tokens per second of `model(token, state)` without sampling."""
    whole = ModelDecoder(model, rows)
    with torch.no_grad():
        logits, state = model(whole.token[:1, None], state=model.init_state(1))
    whole.start(logits[:, -1], state)
    for _ in range(3):
        whole.step()
    float(whole.logits.sum())
    start = time.perf_counter()
    for _ in range(n):
        whole.step()
    float(whole.logits.sum())  # waits for the device
    return rows * n / (time.perf_counter() - start)


def memory() -> dict:
    """Return the bytes held after 1,000 and after 100,000 tokens of one piece."""
    codec = make_codec("midi-llm-piano")
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=1, n_embd=64, vocab_size=codec.vocab_size)).requires_grad_(False)
    model.to(DEVICE, torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)
    piece = Piece(np.array([codec.bos_id]), np.empty(0, np.int64))
    grammar = codec.grammar(piece)
    generator = TokenGenerator(model, 1, Sampling(repetition_penalty=0.1), grammar.tables, codec.token_properties.keys)
    tokens = generator.generate(piece.ids, codec.grammar(piece, bars=10**9))
    held = []
    for n in (1_000, 99_000):
        for _ in progress_bar(itertools.islice(tokens, n), "memory", n):
            pass
        held.append(_held())
    print(f"memory: {held[0]:,} bytes after 1,000 tokens, {held[1]:,} after 100,000", flush=True)
    return {"bytes_after_1000": held[0], "bytes_after_100000": held[1], "bytes_grown": held[1] - held[0]}


def _held() -> int:
    """Return the peak memory of the GPU or of this process, in bytes."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def samples(codec: Codec, n: int) -> dict:
    """Count which of n samples at temperature 1.5 are well-formed files and have exactly the requested bars."""
    context_bars, bars = 2, 4
    source = tune()
    model = barely_trained(codec, codec.encode(source))
    start = time.perf_counter()
    prompt, opening = read_opening(codec, source, context_bars, "the tune")
    completions = complete(
        model, codec, prompt, context_bars=context_bars, bars=bars, count=n, sampling=Sampling(temperature=1.5),
        rows_at_once=128,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    well_formed = to_the_bar = tokens = 0
    for completion in progress_bar(completions, codec.name):
        tokens += len(completion.new_ids)
        joined = Completion(codec, prompt, completion.new_ids, completion.bars, opening)
        midis = [read_back(completion.midi()), read_back(completion.midi_alone()), read_back(joined.midi())]
        well_formed += all(is_well_formed(midi) for midi in midis)
        lengths = (context_bars + bars, bars, context_bars + bars)
        to_the_bar += completion.bars == bars and all(map(lasts, midis, lengths))
    found = {"well_formed": well_formed, "to_the_bar": to_the_bar, "tokens": tokens, "seconds": round(seconds, 1)}
    print(f"{codec.name}: {found}", flush=True)
    return found


def tune() -> bytes:
    """Return a MIDI file of sixteen bars for piano and bass."""
    midi = mido.MidiFile(ticks_per_beat=480)
    for channel, (program, base, step) in enumerate(((0, 60, 240), (32, 40, 480))):
        track = mido.MidiTrack([mido.Message("program_change", program=program, channel=channel)])
        for i in range(16 * 1920 // step):
            pitch = base + (0, 4, 7, 12, 9, 5)[i * i % 6]
            track.append(mido.Message("note_on", note=pitch, velocity=60 + i % 5 * 8, channel=channel))
            track.append(mido.Message("note_off", note=pitch, channel=channel, time=step))
        midi.tracks.append(track)
    file = io.BytesIO()
    midi.save(file=file)
    return file.getvalue()


def barely_trained(codec: Codec, ids: np.ndarray, steps: int = 20) -> RWKV:
    """Return a small model after a few steps on `ids`."""
    torch.manual_seed(0)
    model = RWKV(ModelConfig(n_layer=2, n_embd=64, vocab_size=codec.vocab_size))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    row = torch.from_numpy(ids.astype(np.int64))[None]
    for _ in range(steps):
        loss = model.loss(row[:, :-1], row[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"{codec.name}: {steps} steps, loss {loss:.2f}, {np.log(codec.vocab_size):.2f} at random")
    return model.requires_grad_(False).to(DEVICE, torch.bfloat16 if DEVICE.type == "cuda" else torch.float32)


def read_back(midi: mido.MidiFile) -> mido.MidiFile:
    """Return the file after writing and reading it with mido."""
    file = io.BytesIO()
    midi.save(file=file)
    return mido.MidiFile(file=io.BytesIO(file.getvalue()))


def is_well_formed(midi: mido.MidiFile) -> bool:
    """Return whether every note that begins ends later, and every note that ends has begun."""
    for track in midi.tracks:
        sounding: dict[tuple[int, int], int] = {}
        now = 0
        for message in track:
            now += message.time
            if message.type not in ("note_on", "note_off"):
                continue
            key = (message.channel, message.note)
            if message.type == "note_on" and message.velocity:
                if key in sounding:
                    return False
                sounding[key] = now
            elif sounding.pop(key, now) >= now:
                return False
        if sounding:
            return False
    return True


def lasts(midi: mido.MidiFile, bars: int) -> bool:
    """Return whether the file reaches the end of the last of this many bars, and no note begins after this end."""
    end = int(bar_ticks(midi, bars)[-1])
    length = max(sum(message.time for message in track) for track in midi.tracks)
    notes = read_notes(midi)
    return length >= end and bool((notes.start_tick < end).all())


if __name__ == "__main__":
    sys.exit(main())
