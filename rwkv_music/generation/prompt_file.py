"""The opening of a prompt's file: its events before a bar line, and their tokens.

The file is first cut at the bar line and then encoded, so the tokens do not depend on the notes after the line. The
events of the opening are kept unchanged, even if the tokens cannot represent them. Notable choices:

- Bars are counted from the beginning of the file, by its time signatures. Events at the bar line belong to the next
  bar.
- Notes and pedals that are held at the bar line are encoded with the lengths that they have in the file.
- A codec rounds times, which can move a note shortly before the bar line into the next bar. To prevent this, the note
  is moved to a slightly earlier time before it is encoded.
- A marker note at the bar line makes the codec encode any silence before the bar line.
"""

import io
from dataclasses import dataclass, replace
from math import ceil

import mido
import numpy as np

from rwkv_music.errors import UserError, plural
from rwkv_music.midi.edit import cut_after, releases
from rwkv_music.midi.events import (
    DRUM_CHANNEL,
    EXPRESSION,
    VOLUME,
    RejectedMidi,
    TimedMessage,
    read_midi,
    timed_messages,
    to_track,
)
from rwkv_music.midi.notes import is_note_on, read_notes
from rwkv_music.midi.time import MAX_TEMPO, BarGrid, TempoMap
from rwkv_music.tokenizers.codec import BarLines, Codec, Piece

FASTEST_TEMPO = 20_000  # microseconds per quarter note, 3,000 quarter notes per minute
SHORTEST_BAR_MS = 10.0
# Bounds of the ratio of a bar's rounded length to its exact length. Without them, the ratio would be far lower where a
# codec shortens a long silence.
ROUNDING = 0.8, 1.25


@dataclass(frozen=True)
class Opening:
    """The events of a file before tick `line`, which is the end of its first `bars` bars."""

    midi: mido.MidiFile
    line: int
    bars: int
    released: list[list[TimedMessage]]  # for each track, later events that release the notes and pedals held at `line`


def read_opening(codec: Codec, data: bytes, context_bars: int, name: str) -> tuple[Piece, Opening]:
    """Return the first `context_bars` bars of a MIDI file as tokens and as events. `name` is used in errors.

    Raises UserError for data that is not a MIDI file, for a file with fewer bars, and for an opening without notes.
    """
    try:
        midi = mido.MidiFile(file=io.BytesIO(read_midi(data)), clip=True)
    except (RejectedMidi, OSError, ValueError, EOFError, KeyError, IndexError) as error:
        raise UserError(
            f"{name} cannot be a prompt ({str(error) or type(error).__name__}): give another MIDI file."
        ) from error
    onsets = read_notes(midi).start_tick
    grid = BarGrid.from_midi(midi)
    check_context(name, int(grid.bar(onsets[-1])) + 1 if len(onsets) else 0, context_bars)
    line = int(grid.lines(context_bars)[-1])
    opening = Opening(cut_after(midi, line), line, context_bars, releases(midi, line))
    try:
        piece, n_bars = _encode(codec, opening)
    except (RejectedMidi, ValueError) as error:  # mido cannot write every event that it reads
        raise UserError(f"{name} up to bar {context_bars} cannot be a prompt ({error}): give another piece.") from error
    prompt = codec.first_bars(piece, n_bars)
    if not codec.count_notes(prompt.ids):
        first = int(grid.bar(onsets[0])) + 1
        remedy = f"give --context-bars {first} or more" if first > context_bars else "give another piece or more bars"
        causes = "".join(f" ({reason}: {n:,})" for reason, n in piece.lost.items())
        raise UserError(
            f"{name} up to bar {context_bars} has no notes that the tokenizer {codec.name} encodes{causes}: {remedy}."
        )
    if piece.bar_lines is not None:
        prompt = _with_regular_bars(prompt, float(piece.bar_lines.start_ms[n_bars]), opening)
    return prompt, opening


def check_context(name: str, n_bars: int, context_bars: int) -> None:
    """Raise UserError if a prompt of `n_bars` bars has fewer than `context_bars`."""
    if n_bars < context_bars:
        remedy = f"give a longer prompt, or --context-bars {n_bars}" if n_bars else "give a piece with notes"
        raise UserError(f"{name} has {plural(n_bars, 'bar')}, fewer than --context-bars {context_bars}: {remedy}.")


def _encode(codec: Codec, opening: Opening) -> tuple[Piece, int]:
    """Return a piece that begins with the opening, and the number of bars of the piece that belong to the opening."""
    midi, line, released = opening.midi, opening.line, opening.released
    early = 0
    while early <= midi.ticks_per_beat:
        tracks = [
            _encodable(timed_messages(track), line, early) + after
            for track, after in zip(midi.tracks, released, strict=True)
        ]
        piece = codec.encode_piece(_file(midi, [*tracks, _marker(midi, line)]))
        n_bars = len(piece.bar_starts) - 1  # the marker starts in the last bar
        if codec.count_notes(codec.first_bars(piece, n_bars).ids) == codec.count_notes(piece.ids) - 1:
            return piece, n_bars
        early = max(2 * early, 1)
    # Moving notes did not help: the codec cannot encode the time signatures, so its bars differ from those of the file.
    # The opening is encoded without the marker.
    tracks = [timed_messages(track) + after for track, after in zip(midi.tracks, released, strict=True)]
    piece = codec.encode_piece(_file(midi, [_encodable(messages, line, 0) for messages in tracks]))
    return piece, len(piece.bar_starts)


def _encodable(messages: list[TimedMessage], line: int, early: int) -> list[TimedMessage]:
    """Return messages, with notes that start after tick `line - early` moved to that tick.

    Tempos are limited so that, after rounding, the notes before the line remain before the marker note.
    """
    latest = max(line - early, 0)
    encodable = []
    for tick, message in messages:
        if is_note_on(message):
            tick = min(tick, latest)
        elif message.type == "set_tempo" and message.tempo < FASTEST_TEMPO:
            message = message.copy(tempo=FASTEST_TEMPO)
        encodable.append((tick, message))
    return encodable


def _marker(midi: mido.MidiFile, line: int) -> list[TimedMessage]:
    """Return a track with the marker, a piano note at `line`.

    The note has the pitch that `midi` uses least and, if there is one, a channel that `midi` does not use.
    """
    messages = [message for track in midi.tracks for message in track]
    used = {message.channel for message in messages if not message.is_meta and hasattr(message, "channel")}
    channel = min(set(range(16)) - used - {DRUM_CHANNEL}, default=0)
    pitches = np.bincount([m.note for m in messages if m.type == "note_on"], minlength=127)
    pitch = int(pitches[:127].argmin())
    controls = [mido.Message("control_change", channel=channel, control=c, value=127) for c in (VOLUME, EXPRESSION)]
    note = [mido.Message(kind, channel=channel, note=pitch) for kind in ("note_on", "note_off")]
    # In the user's file, a time signature at the line may have cut the last bar short. The opening does not contain it.
    # The time signature in the marker's track starts a bar at the line again.
    numerator, denominator = _signature(midi, line)
    meter = mido.MetaMessage("time_signature", numerator=numerator, denominator=denominator)
    setting = [meter, *controls, mido.Message("program_change", channel=channel, program=0), note[0]]
    return [*((line, message) for message in setting), (line + midi.ticks_per_beat, note[1])]


def _signature(midi: mido.MidiFile, line: int) -> tuple[int, int]:
    """Return the (numerator, denominator) in force before tick `line`."""
    grid = BarGrid.from_midi(midi)
    return tuple(grid.signatures(int(grid.bar(line - 1)) + 1)[-1].tolist())


def _file(midi: mido.MidiFile, tracks: list[list[TimedMessage]]) -> bytes:
    """Return the bytes of a file with the given tracks and the resolution of `midi`."""
    file = io.BytesIO()
    tracks = [to_track(messages, note_offs_first=False) for messages in tracks]
    mido.MidiFile(type=1, ticks_per_beat=midi.ticks_per_beat, tracks=tracks).save(file=file)
    return file.getvalue()


def _with_regular_bars(prompt: Piece, end_ms: float, opening: Opening) -> Piece:
    """Return `prompt` with as many bars as the opening. All bars get the length of the bar after the line.

    The last bar of the prompt ends at `end_ms`. The bar after the line continues the tempo and time signature before
    the line. Because the codec rounds times, the exact length of this bar is multiplied by a factor: the rounded length
    of the prompt's last bar divided by its exact length. The lengths of the bars before the line do not matter, because
    their events are taken from the file.
    """
    midi, line = opening.midi, opening.line
    grid, tempos = BarGrid.from_midi(midi), TempoMap.from_midi(midi)
    numerator, denominator = _signature(midi, line)
    last_ms = np.diff(tempos.ms(np.array([grid.lines(int(grid.bar(line - 1)))[-1], line])))[0]
    rounding = np.clip((end_ms - prompt.bar_lines.start_ms[-2]) / max(last_ms, 1e-3), *ROUNDING)
    # The tempo is a whole number of microseconds per quarter note, so that all bars have the same tempo when decoded.
    quarters = 4 * numerator / denominator
    tempo = max(round(max(tempos.tempos[-1], FASTEST_TEMPO) * rounding), ceil(SHORTEST_BAR_MS * 1000 / quarters))
    tempo = min(tempo, MAX_TEMPO - 1)
    n = opening.bars
    starts = np.concatenate([np.repeat(prompt.bar_starts[:1], n - len(prompt.bar_starts)), prompt.bar_starts])
    start_ms = end_ms + tempo * quarters / 1000 * (np.arange(n + 2) - n)
    lines = BarLines(start_ms, np.array([(numerator, denominator)] * (n + 1)))
    return replace(prompt, bar_starts=starts, bar_lines=lines)
