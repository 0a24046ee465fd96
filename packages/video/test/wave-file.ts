/** Sound files for tests. */

/** A `.wav` file of 16 bits; each channel is a function of seconds, from -1 to 1. */
export function waveFile(sound: {
  seconds: number;
  rate: number;
  channels: readonly ((time: number) => number)[];
}): Buffer {
  const { seconds, rate, channels } = sound;
  const count = Math.round(seconds * rate);
  const bytes = Buffer.alloc(44 + count * channels.length * 2);
  bytes.write('RIFF', 0);
  bytes.writeUInt32LE(bytes.length - 8, 4);
  bytes.write('WAVEfmt ', 8);
  bytes.writeUInt32LE(16, 16);
  bytes.writeUInt16LE(1, 20);
  bytes.writeUInt16LE(channels.length, 22);
  bytes.writeUInt32LE(rate, 24);
  bytes.writeUInt32LE(rate * channels.length * 2, 28);
  bytes.writeUInt16LE(channels.length * 2, 32);
  bytes.writeUInt16LE(16, 34);
  bytes.write('data', 36);
  bytes.writeUInt32LE(bytes.length - 44, 40);
  for (let place = 0; place < count; place += 1) {
    channels.forEach((channel, index) => {
      const sample = Math.round(channel(place / rate) * 32_767);
      bytes.writeInt16LE(sample, 44 + (place * channels.length + index) * 2);
    });
  }
  return bytes;
}
