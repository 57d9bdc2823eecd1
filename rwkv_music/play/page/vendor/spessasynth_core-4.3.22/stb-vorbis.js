// Takes the place of the package stb-vorbis, which decodes compressed samples: the SoundFonts of the page have none.

export const StbVorbis = {
  ready: Promise.resolve(),
  decode() { throw new Error("This SoundFont is compressed."); },
};
