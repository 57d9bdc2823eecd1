// A SoundFont synthesizer. It runs in the audio thread (soundfont-worklet.js); this is the page's side of it.

export class SoundFont {
  // Load the font at `url`. Throws an Error if it cannot be used.
  static async load(audio, output, url) {
    if (!audio.audioWorklet) throw new Error("browsers allow this only on the computer of the server");
    const [response] = await Promise.all([fetch(url), audio.audioWorklet.addModule("/soundfont-worklet.js")]);
    if (!response.ok) throw new Error(`status ${response.status}`);
    const font = await response.arrayBuffer();
    const node = new AudioWorkletNode(audio, "soundfont", {
      numberOfInputs: 0, outputChannelCount: [2], processorOptions: { font },
    });
    await new Promise((done, failed) => {
      node.port.onmessage = ({ data }) => (data.isReady ? done() : failed(new Error(data.error)));
      node.onprocessorerror = () => failed(new Error("The synthesizer failed."));
    });
    node.connect(output);
    return new SoundFont(node);
  }

  constructor(node) { this.node = node; }

  // Play a note of a part from `start` to `end`, in seconds of the audio clock.
  play(part, index, pitch, velocity, start, end) {
    const { drums, program } = part;
    this.node.port.postMessage({ note: { part: index, drums, program, pitch, velocity, start, end } });
  }

  // End all notes, also those that have not begun.
  silence() { this.node.port.postMessage({}); }
}
