/** The sound of a file as speech recognition takes it, while it is decoded. */

export interface ReadSoundOptions {
  /** What messages call the file. Default: its path. */
  readonly name?: string | undefined;
  /** Stops with `ABORTED`. */
  readonly signal?: AbortSignal | undefined;
  /** Called at the end for everything that was repaired or left out, in words. */
  readonly onNote?: ((note: string) => void) | undefined;
}

/** Samples of a second. */
export const SOUND_RATE = 16_000;

/**
 * The sound of a file of any format that holds some, as one channel of 16 kHz from -1 to 1, some seconds at a time. The first sample is
 * that of the file's second 0: where the sound begins later or pauses, there is silence. Memory does not grow with length.
 *
 * Decoding runs on FFmpeg's threads; pictures are skipped.
 *
 * @throws `MEDIA_NOT_FOUND`, `MEDIA_UNREADABLE`, `MEDIA_NO_AUDIO`, `ABORTED`.
 */
export async function* readSound(
  path: string,
  options: ReadSoundOptions = {},
): AsyncGenerator<Float32Array<ArrayBuffer>, void, undefined> {
  const { decodeSound } = await import('./sound-decoder.js');
  yield* decodeSound(path, options);
}
