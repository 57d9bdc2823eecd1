// Playback: notes are given to an instrument shortly before they sound, on the clock of the audio hardware.

import { Oscillators } from "/oscillators.js";
import { SoundFont } from "/soundfont.js";

const AHEAD_S = 0.2;
const INTERVAL_MS = 40;
const FONT_GAIN = 2; // a SoundFont is softer than the oscillators

export class Player {
  constructor(isSilent) {
    this.isSilent = isSilent; // of a part, by index
    this.piece = null;
    this.loop = null; // [from, to] in ticks
    this.stoppedAt = 0; // tick
    this.timer = null;
    this.onEnd = () => {};
    this.fontUrl = null; // of the SoundFont; null: play with oscillators
    this.onFontFailed = () => {};
  }

  get isPlaying() { return this.timer !== null; }

  // Make the synthesizer. Browsers allow sound only after a user's action, so this is called after the first one.
  prepare() {
    this.prepared ??= this.makeSynthesizer().catch((error) => {
      this.prepared = null; // so that the next call tries again
      throw error;
    });
    return this.prepared;
  }

  async makeSynthesizer() {
    this.audio = new AudioContext({ latencyHint: "interactive" });
    this.output = new GainNode(this.audio, { gain: 0.8 });
    const limiter = new DynamicsCompressorNode(this.audio, { threshold: -14, knee: 8, ratio: 8, attack: 0.004 });
    this.analyser = new AnalyserNode(this.audio, { fftSize: 2048 });
    this.output.connect(limiter).connect(this.analyser).connect(this.audio.destination);
    this.samples = new Float32Array(this.analyser.fftSize);
    this.instrument = new Oscillators(this.audio, this.output);
    if (!this.fontUrl) return;
    try {
      const gain = new GainNode(this.audio, { gain: FONT_GAIN });
      gain.connect(this.output);
      this.instrument = await SoundFont.load(this.audio, gain, this.fontUrl);
    } catch (error) {
      this.onFontFailed(error);
    }
  }

  show(piece) {
    const at = this.tick;
    this.piece = piece;
    if (this.isPlaying) this.seek(Math.min(at, piece.end));
    else this.stoppedAt = Math.min(this.stoppedAt, piece.end);
  }

  get tick() {
    if (!this.isPlaying) return this.stoppedAt;
    let seconds = this.audio.currentTime - this.origin;
    const range = this.loopSeconds();
    // Notes are scheduled ahead, so the end of the loop may still be sounding after the origin has moved.
    if (range && this.wrapped && seconds < range[0]) seconds += range[1] - range[0];
    if (!this.wrapped) seconds = Math.max(seconds, this.startSeconds);
    return Math.min(this.piece.tick(seconds), this.piece.end);
  }

  loopSeconds() { return this.loop?.map((tick) => this.piece.seconds(tick)) ?? null; }

  async start() {
    await this.prepare();
    await this.audio.resume();
    let from = this.stoppedAt >= this.piece.end ? 0 : this.stoppedAt;
    if (this.loop && (from < this.loop[0] || from >= this.loop[1])) from = this.loop[0];
    this.begin(from);
  }

  begin(tick) {
    this.startSeconds = this.piece.seconds(tick);
    this.origin = this.audio.currentTime + 0.06 - this.startSeconds;
    this.wrapped = false;
    this.next = this.piece.parts.map((part) => part.firstFrom(tick));
    clearInterval(this.timer);
    this.timer = setInterval(() => this.schedule(), INTERVAL_MS);
    this.schedule();
  }

  seek(tick) {
    this.stoppedAt = tick;
    if (!this.isPlaying) return;
    this.instrument.silence();
    this.begin(tick);
  }

  stop(at = this.tick) {
    if (!this.isPlaying) return;
    clearInterval(this.timer);
    this.timer = null;
    this.stoppedAt = at;
    this.instrument.silence();
  }

  schedule() {
    for (;;) {
      const horizon = this.audio.currentTime + AHEAD_S - this.origin;
      const range = this.loopSeconds();
      const wraps = range && horizon >= range[1] && range[1] > range[0] + 0.05;
      this.scheduleUntil(wraps ? range[1] : horizon, wraps ? range[1] : Infinity);
      if (!wraps) break;
      this.origin += range[1] - range[0];
      this.wrapped = true;
      this.next = this.piece.parts.map((part) => part.firstFrom(this.loop[0]));
    }
    if (!this.loop && this.audio.currentTime - this.origin > this.piece.seconds(this.piece.end) + 0.2) {
      this.stop(0);
      this.onEnd();
    }
  }

  scheduleUntil(seconds, latest) {
    const tick = this.piece.tick(seconds);
    this.piece.parts.forEach((part, index) => {
      const silent = this.isSilent(index);
      while (this.next[index] < part.count && part.start(this.next[index]) < tick) {
        const i = this.next[index]++;
        if (silent) continue;
        const start = this.origin + this.piece.seconds(part.start(i));
        const end = this.origin + Math.min(this.piece.seconds(part.end(i)), latest);
        this.instrument.play(part, index, part.pitch(i), part.velocity(i), Math.max(start, this.audio.currentTime), end);
      }
    });
  }

  // The loudness of what sounds now, 0 to 1.
  get level() {
    if (!this.isPlaying) return 0;
    this.analyser.getFloatTimeDomainData(this.samples);
    let sum = 0;
    for (const sample of this.samples) sum += sample * sample;
    return Math.min(1, 3 * Math.sqrt(sum / this.samples.length));
  }
}
