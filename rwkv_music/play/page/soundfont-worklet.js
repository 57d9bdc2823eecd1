// The audio thread's side of soundfont.js: a synthesizer that plays notes at their times.

import { SoundBankLoader, SpessaSynthProcessor } from "/vendor/spessasynth_core-4.3.22/index.js";

// Channels are in groups of 16. The tenth channel of a group plays drums.
const GROUP = 16;
const DRUM_CHANNEL = 9;
const CHANNELS = 8 * GROUP;

class SoundFontProcessor extends AudioWorkletProcessor {
  constructor({ processorOptions }) {
    super();
    this.synthesizer = new SpessaSynthProcessor(sampleRate, { eventsEnabled: false });
    this.queue = []; // { time, channel, pitch, velocity } of starts, and of ends with velocity 0, sorted by time
    this.programs = [];
    this.port.onmessage = ({ data }) => this.receive(data);
    try {
      this.synthesizer.soundBankManager.addSoundBank(SoundBankLoader.fromArrayBuffer(processorOptions.font), "font");
      while (this.synthesizer.midiChannels.length < CHANNELS) this.synthesizer.createMIDIChannel();
      this.synthesizer.reset(); // new channels are silent until then
      this.synthesizer.processorInitialized.then(() => this.port.postMessage({ isReady: true }));
    } catch (error) {
      this.port.postMessage({ error: String(error?.message ?? error) });
    }
  }

  receive(message) {
    if (message.note) this.play(message.note);
    else {
      this.queue = [];
      this.synthesizer.stopAllChannels();
    }
  }

  // Each of the first 120 parts has a channel of its own, except that all drums share one.
  play({ part, drums, program, pitch, velocity, start, end }) {
    const place = part % (GROUP - 1);
    const group = Math.floor(part / (GROUP - 1)) % (CHANNELS / GROUP);
    const channel = drums ? DRUM_CHANNEL : GROUP * group + place + (place < DRUM_CHANNEL ? 0 : 1);
    this.insert({ time: start, channel, drums, program, pitch, velocity });
    this.insert({ time: end, channel, pitch, velocity: 0 });
  }

  // Ends come before starts at the same time, so that a repeated note is not cut off.
  insert(event) {
    let at = this.queue.length;
    const isAfter = (other) => other.time > event.time
      || (other.time === event.time && event.velocity === 0 && other.velocity > 0);
    while (at > 0 && isAfter(this.queue[at - 1])) at--;
    this.queue.splice(at, 0, event);
  }

  process(_inputs, [[left, right]]) {
    const until = currentTime + left.length / sampleRate;
    let n = 0;
    for (; n < this.queue.length && this.queue[n].time < until; n++) {
      const { channel, drums, program, pitch, velocity } = this.queue[n];
      if (!velocity) this.synthesizer.noteOff(channel, pitch);
      else {
        if (!drums && this.programs[channel] !== program) this.synthesizer.programChange(channel, program);
        this.programs[channel] = program;
        this.synthesizer.noteOn(channel, pitch, velocity);
      }
    }
    this.queue.splice(0, n);
    this.synthesizer.process(left, right);
    return true;
  }
}

registerProcessor("soundfont", SoundFontProcessor);
