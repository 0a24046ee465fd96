import { existsSync } from 'node:fs';
import { LlamaVidError } from '@llamavid/errors';
import { recordPhase } from '@llamavid/native';
import {
  type Media,
  type MediaInfo,
  type OpenMediaOptions,
  openMedia,
  type SamplingReport,
} from '@llamavid/video';
import {
  defaultStore,
  type StoreEntry,
  type StorePrecision,
  type StoreWriter,
  shardFrames,
  VideoStore,
  type VisualEncoder,
  VisualFeatures,
} from '@llamavid/vision';

export interface StoreOptions {
  /**
   * Where features are kept between runs: a folder, an open store, or `none`. Default: what `LLAMAVID_STORE` says, else a folder of
   * the user's cache of limited size. Sources without a path are not stored.
   */
  store?: VideoStore | 'none' | (string & {}) | undefined;
  /** How a feature's number is stored. Default `16bit`. */
  storePrecision?: StorePrecision | undefined;
  /** While another process encodes the video: `wait` for its end (default), or `fail` with `STORE_LOCKED`. */
  whenLocked?: 'wait' | 'fail' | undefined;
}

/** Which frames of a source are encoded. */
export type SamplingOptions = Pick<
  OpenMediaOptions,
  'fps' | 'frames' | 'maxFrames' | 'start' | 'end' | 'strict'
>;

export type OnProgress = (encodedFrames: number, totalFrames: number, storedFrames: number) => void;

interface EncodeOptions {
  signal: AbortSignal;
  whenLocked?: StoreOptions['whenLocked'];
  onProgress?: OnProgress | undefined;
  /** The text of a movie whose frames have these seconds: an `<image>` for each, subtitles between them. */
  inputs?: ((timestamps: readonly number[]) => string) | undefined;
}

/** What the encoder made of a clip, and what it took. */
export interface EncodedClip {
  features: VisualFeatures;
  sampling: SamplingReport;
  /** Frames that this run decoded. */
  framesDecoded: number;
  /** Frames that this run's encoder ran for. */
  framesEncoded: number;
  /** `found`: by an earlier run; `written`: by this one. */
  stored: 'found' | 'written' | undefined;
  /** Milliseconds that the encoder waited for frames; decoding beside it is not in it. */
  decodeMs: number;
  encodeMs: number;
}

/** A place for a clip's features. */
export interface StorePlace {
  entry: StoreEntry;
  /** Looks again. */
  find: (signal?: AbortSignal) => Promise<StoreEntry>;
  /** Called when the features are all there. */
  finished: () => Promise<void>;
  /** Whether a store that cannot be written to is worth a note and no more: nobody asked for it. */
  optional: boolean;
  path: string;
  /** Of the store. */
  folder: string;
}

/** What is known of a clip before its frames are. */
export type ClipFacts = Pick<Media, 'kind' | 'info' | 'expectedFrames' | 'subtitles'>;

/** What a store knows of a clip without looking at its source. */
export interface StoredClip extends ClipFacts {
  sampling: SamplingReport;
}

/** Whether the features of a source are to be stored. */
export function isStorable(source: unknown, { store }: StoreOptions): source is string {
  return typeof source === 'string' && store !== 'none' && (store ?? defaultStore()) !== undefined;
}

/** Where the features of a source are or will be stored; undefined where they are not. `sampling` is how its frames are chosen, in words. */
export async function placeInStore(
  source: unknown,
  encoder: VisualEncoder,
  options: StoreOptions & SamplingOptions & { signal?: AbortSignal | undefined },
  sampling: string = samplingText(options),
): Promise<StorePlace | undefined> {
  const opened = await openStore(source, options);
  if (opened === undefined) return undefined;
  const { store, setting, path } = opened;
  const { storePrecision: precision, signal } = options;
  const find = (stop?: AbortSignal) => store.find(encoder, path, { sampling, precision, signal: stop });
  const finished = async () => {
    if (setting === undefined) return;
    // The newest stays, however large: it is what the question is about.
    const [newest] = await store.list();
    await store.prune(Math.max(setting.limitBytes, newest?.bytes ?? 0));
  };
  const entry = await find(signal);
  return { entry, find, finished, optional: options.store === undefined, path, folder: store.folder };
}

/** What a store tells of a source before a model is loaded, if the features of its frames are there; undefined where they are not. */
export async function lookInStore(
  source: unknown,
  options: StoreOptions & SamplingOptions & { signal?: AbortSignal | undefined },
): Promise<StoredClip | undefined> {
  const opened = await openStore(source, options);
  if (opened === undefined) return undefined;
  const { store, path } = opened;
  return storedClip(
    await store.report(path, { sampling: samplingText(options), signal: options.signal }),
    path,
  );
}

/** The store of a source, and what the environment says of it if it is the usual one; undefined for a source that is not stored. */
async function openStore(
  source: unknown,
  options: StoreOptions,
): Promise<{ store: VideoStore; setting: ReturnType<typeof defaultStore>; path: string } | undefined> {
  if (!isStorable(source, options)) return undefined;
  const setting = options.store === undefined ? defaultStore() : undefined;
  const folder = setting?.folder ?? options.store;
  // The usual way tells what is wrong with a path.
  if (folder === undefined || !existsSync(source)) return undefined;
  const store = folder instanceof VideoStore ? folder : await VideoStore.open(folder);
  return { store, setting, path: source };
}

/** The same words for the same frames. */
function samplingText({ fps, frames, maxFrames, start, end, strict }: SamplingOptions): string {
  const rate = frames === undefined ? { fps: fps ?? 1 } : { frames };
  return JSON.stringify({ ...rate, maxFrames, start: start || undefined, end, strict: strict || undefined });
}

/** What a store's report tells of a clip; undefined without one. */
export function storedClip(report: string | undefined, path: string): StoredClip | undefined {
  if (report === undefined) return undefined;
  const subtitles: Media['subtitles'] = async (options = {}) => {
    await using media = await openMedia(path, options);
    return await media.subtitles(options);
  };
  return { ...readReport(report, path), subtitles };
}

/** What a report of a store says of the source at `path`. `inputs` is the text of a movie, with an `<image>` for each frame. */
export function readReport(
  report: string,
  path: string,
): Omit<StoredClip, 'subtitles'> & { inputs: string | undefined } {
  try {
    const { kind, sampling, inputs }: StoredReport = JSON.parse(report);
    const info: MediaInfo = { path, ...sampling.source };
    const whole = { ...sampling, source: info, framesDecoded: 0 };
    return { kind, info, expectedFrames: sampling.frames, sampling: whole, inputs };
  } catch (cause) {
    throw new LlamaVidError('STORE_INVALID', `${path}: what the store says of its frames cannot be read`, {
      hint: 'Remove the video with `llamavid cache rm`, and encode it again.',
      cause,
    });
  }
}

interface StoredReport {
  kind: Media['kind'];
  sampling: SamplingReport;
  inputs?: string;
}

/** What a store is told: nothing that depends on where a run was interrupted, or on where the source lies. */
function reportText({ kind }: Media, sampling: SamplingReport, inputs: string | undefined): string {
  const { path: _path, ...source } = sampling.source;
  return JSON.stringify({ kind, sampling: { ...sampling, source, framesDecoded: undefined }, inputs });
}

/** Decodes and encodes a clip, or finds what a store has of it. */
export async function encodeClip(
  media: Media | undefined,
  encoder: VisualEncoder,
  place: StorePlace | undefined,
  options: EncodeOptions,
): Promise<EncodedClip> {
  const found = place && foundClip(place);
  if (found !== undefined) return found;
  if (media === undefined)
    throw new LlamaVidError('INTERNAL', 'a video was not opened and is not in the store');
  if (place === undefined) return encodeAll(media, encoder, options);
  const { signal, whenLocked = 'wait' } = options;
  let writer: StoreWriter;
  try {
    writer = await place.entry.writer({ wait: whenLocked === 'wait', signal });
  } catch (error) {
    if (!(place.optional && LlamaVidError.is(error) && error.code === 'STORE_INVALID')) throw error;
    const encoded = await encodeAll(media, encoder, options);
    encoded.sampling.notes.push(`store: the features are not kept: ${error.message}`);
    return encoded;
  }
  using open = writer;
  if (open.isComplete) {
    // Another process was faster.
    open.close();
    const written = foundClip({ ...place, entry: await place.find(signal) });
    if (written === undefined) throw new LlamaVidError('INTERNAL', 'a whole video in the store is not found');
    return written;
  }
  const encoded = await encodeIntoStore(media, encoder, open, options);
  await place.finished();
  return encoded;
}

function foundClip(place: StorePlace): EncodedClip | undefined {
  const features = place.entry.features();
  const sampling = storedClip(place.entry.report, place.path)?.sampling;
  if (features === undefined || sampling === undefined) return undefined;
  const work = { framesDecoded: 0, framesEncoded: 0, decodeMs: 0, encodeMs: 0 };
  return { features, sampling, stored: 'found', ...work };
}

/** Decoding, encoding and writing run side by side: a shard is written while the next one is encoded. */
async function encodeIntoStore(
  media: Media,
  encoder: VisualEncoder,
  writer: StoreWriter,
  options: EncodeOptions,
): Promise<EncodedClip> {
  let writing = Promise.resolve();
  let framesEncoded = 0;
  try {
    const work = await encodeBatches(media, encoder, writer.times, options, async (part, times) => {
      framesEncoded += part.encodedFrameCount;
      try {
        await writing;
      } catch (error) {
        part.close();
        throw error;
      }
      writing = writer.append(part, times);
      // Its failure is told by whoever waits for it.
      writing.catch(() => undefined);
    });
    await writing;
    const sampling = media.report();
    if (sampling.frames === 0) throw noFrame();
    const features = await writer.finish(reportText(media, sampling, options.inputs?.(sampling.timestamps)));
    sampling.notes.push(...writer.repairs.map((repair) => `store: ${repair}`));
    return {
      features,
      sampling,
      framesDecoded: sampling.framesDecoded,
      framesEncoded,
      stored: 'written',
      ...work,
    };
  } finally {
    // The writer is closed behind this: nothing may write any more.
    await writing.catch(() => undefined);
  }
}

async function encodeAll(media: Media, encoder: VisualEncoder, options: EncodeOptions): Promise<EncodedClip> {
  const parts: VisualFeatures[] = [];
  try {
    const work = await encodeBatches(media, encoder, [], options, (part) => {
      parts.push(part);
    });
    if (parts.length === 0) throw noFrame();
    const framesEncoded = parts.reduce((sum, part) => sum + part.encodedFrameCount, 0);
    const whole = VisualFeatures.concatenate(parts);
    // Now and not at the end: a part that nobody holds is freed once it is copied, so the features never exist twice.
    for (const part of parts) part.close();
    const features = await whole;
    const sampling = media.report();
    const { framesDecoded } = sampling;
    return { features, sampling, framesDecoded, framesEncoded, stored: undefined, ...work };
  } finally {
    for (const part of parts) part.close();
  }
}

/** Encodes shard by shard, so that numbers do not depend on where a run began. */
export async function encodeBatches(
  media: Media,
  encoder: VisualEncoder,
  after: readonly number[],
  { signal, onProgress }: Pick<EncodeOptions, 'signal' | 'onProgress'>,
  take: (part: VisualFeatures, timestamps: number[]) => void | Promise<void>,
): Promise<{ decodeMs: number; encodeMs: number }> {
  let [decodeMs, encodeMs, encodedFrames, totalFrames] = [0, 0, after.length, 0];
  const countFrames = (_done: number, total: number) => {
    totalFrames = total;
  };
  const reading = { after, batchSize: shardFrames, signal, onProgress: countFrames };
  let waiting = performance.now();
  for await (const { pixels, timestamps } of media.pixels(encoder.preprocessing, reading)) {
    const begun = performance.now();
    decodeMs += begun - waiting;
    recordPhase('frames', begun - waiting);
    try {
      const part = await encoder.encode(pixels, { signal });
      encodedFrames += part.frameCount;
      await take(part, timestamps);
    } finally {
      pixels.close();
    }
    waiting = performance.now();
    encodeMs += waiting - begun;
    recordPhase('encode', waiting - begun);
    onProgress?.(encodedFrames, Math.max(encodedFrames, totalFrames), after.length);
  }
  return { decodeMs, encodeMs };
}

function noFrame(): LlamaVidError {
  return new LlamaVidError('MEDIA_NO_VIDEO', 'no frame lies in the part that was chosen', {
    hint: 'Widen start and end.',
  });
}
