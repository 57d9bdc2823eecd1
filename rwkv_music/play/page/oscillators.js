// A simple synthesizer of plain oscillators: a timbre for each family of General MIDI's instruments, and drums of noise.

const MOST_VOICES = 96;

// Harmonics, then attack, decay to the sustain level, sustain level and release, in seconds.
const PLUCKED = { harmonics: [1, 0.5, 0.28, 0.16, 0.09, 0.05], envelope: [0.004, 1.1, 0.08, 0.18] };
const BELL = { harmonics: [1, 0, 0, 0.45, 0, 0, 0.2], envelope: [0.002, 1.4, 0.02, 0.5] };
const ORGAN = { harmonics: [1, 0.7, 0.35, 0.4, 0.1, 0.2, 0, 0.2], envelope: [0.015, 0.1, 0.85, 0.06] };
const GUITAR = { harmonics: [1, 0.65, 0.4, 0.22, 0.14, 0.1, 0.06], envelope: [0.003, 0.8, 0.1, 0.12] };
const BASS = { harmonics: [1, 0.8, 0.3, 0.12], envelope: [0.006, 0.7, 0.3, 0.08] };
const STRINGS = { harmonics: [1, 0.55, 0.42, 0.26, 0.2, 0.14, 0.1, 0.07], envelope: [0.07, 0.2, 0.8, 0.16] };
const VOICE = { harmonics: [1, 0.4, 0.3, 0.1, 0.06], envelope: [0.09, 0.2, 0.85, 0.2] };
const BRASS = { harmonics: [1, 0.85, 0.7, 0.5, 0.34, 0.2, 0.12], envelope: [0.035, 0.15, 0.75, 0.09] };
const REED = { harmonics: [1, 0.12, 0.6, 0.08, 0.34, 0.05, 0.16], envelope: [0.035, 0.1, 0.85, 0.08] };
const PIPE = { harmonics: [1, 0.22, 0.1, 0.04], envelope: [0.05, 0.1, 0.9, 0.1] };
const LEAD = { harmonics: [1, 0.5, 0.33, 0.25, 0.2, 0.17], envelope: [0.01, 0.1, 0.75, 0.08] };
// Of programs 0 to 7, 8 to 15 and so on.
const FAMILIES = [
  PLUCKED, BELL, ORGAN, GUITAR, BASS, STRINGS, VOICE, BRASS, REED, PIPE, LEAD, STRINGS, BELL, GUITAR, BELL, PIPE,
];

export class Oscillators {
  constructor(audio, output) {
    this.audio = audio;
    this.output = output;
    this.voices = new Set();
    this.waves = new Map();
    this.noise = new AudioBuffer({ length: audio.sampleRate, sampleRate: audio.sampleRate });
    const samples = this.noise.getChannelData(0);
    for (let i = 0; i < samples.length; i++) samples[i] = 2 * Math.random() - 1;
  }

  // Play a note of a part from `start` to `end`, in seconds of the audio clock.
  play(part, _index, pitch, velocity, start, end) {
    if (this.voices.size >= MOST_VOICES) return;
    const loudness = 0.2 * (velocity / 127) ** 1.5;
    if (part.drums) this.drum(pitch, loudness, start);
    else this.tone(FAMILIES[part.program >> 3], pitch, loudness, start, end);
  }

  tone(timbre, pitch, loudness, start, end) {
    const [attack, decay, sustain, release] = timbre.envelope;
    const source = new OscillatorNode(this.audio, { frequency: 440 * 2 ** ((pitch - 69) / 12) });
    source.setPeriodicWave(this.wave(timbre));
    const gain = new GainNode(this.audio, { gain: 0 });
    const held = Math.max(end, start + attack + 0.02);
    gain.gain.setValueAtTime(0, start);
    gain.gain.linearRampToValueAtTime(loudness, start + attack);
    gain.gain.setTargetAtTime(loudness * sustain, start + attack, decay / 3);
    gain.gain.setTargetAtTime(0, held, release / 3);
    this.connect(source, gain, start, held + 2 * release);
  }

  drum(pitch, loudness, start) {
    const gain = new GainNode(this.audio, { gain: 0 });
    const isKick = pitch <= 36;
    const isTom = [41, 43, 45, 47, 48, 50].includes(pitch);
    const length = isKick || isTom ? 0.25 : [49, 51, 52, 55, 57, 59].includes(pitch) ? 0.7 : pitch === 46 ? 0.35 : 0.1;
    let source;
    if (isKick || isTom) {
      const frequency = isKick ? 120 : 90 + 12 * (pitch - 40);
      source = new OscillatorNode(this.audio, { frequency });
      source.frequency.setValueAtTime(frequency, start);
      source.frequency.exponentialRampToValueAtTime(frequency / 2.5, start + length);
    } else {
      source = new AudioBufferSourceNode(this.audio, { buffer: this.noise, loop: true });
    }
    gain.gain.setValueAtTime((isKick ? 3 : 1.6) * loudness, start);
    gain.gain.setTargetAtTime(0, start + 0.002, length / 4);
    if (source instanceof AudioBufferSourceNode) {
      const isSnare = [37, 38, 39, 40].includes(pitch);
      const type = isSnare ? "bandpass" : "highpass";
      const filter = new BiquadFilterNode(this.audio, { type, frequency: isSnare ? 1900 : 6500, Q: 0.6 });
      filter.connect(gain);
      this.connect(source, gain, start, start + length * 1.6, filter);
    } else this.connect(source, gain, start, start + length * 1.6);
  }

  connect(source, gain, start, end, input = gain) {
    const voice = { source, gain };
    source.connect(input);
    gain.connect(this.output);
    source.start(start);
    source.stop(end);
    this.voices.add(voice);
    source.onended = () => {
      gain.disconnect();
      this.voices.delete(voice);
    };
  }

  wave(timbre) {
    if (!this.waves.has(timbre)) {
      const real = new Float32Array([0, ...timbre.harmonics]);
      this.waves.set(timbre, new PeriodicWave(this.audio, { real, imag: new Float32Array(real.length) }));
    }
    return this.waves.get(timbre);
  }

  // End all notes, also those that have not begun.
  silence() {
    const now = this.audio.currentTime;
    for (const { source, gain } of this.voices) {
      gain.gain.cancelScheduledValues(now);
      gain.gain.setTargetAtTime(0, now, 0.015);
      source.stop(now + 0.08);
    }
    this.voices.clear();
  }
}
