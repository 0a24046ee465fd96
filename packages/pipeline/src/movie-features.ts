import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import { movieInputs, type LoadOptions as StageOptions, type Subtitle } from '@llamavid/llm';
import { openMedia } from '@llamavid/video';
import { FeatureFileWriter, VisualEncoder } from '@llamavid/vision';
import {
  encodeBatches,
  encodeClip,
  type OnProgress,
  placeInStore,
  type StoreOptions,
  storedClip,
} from './encoding.js';
import { EMBEDDED } from './model-name.js';
import { planLoad } from './planned-load.js';
import { readGiven } from './subtitles.js';

export interface MovieFeaturesOptions extends StoreOptions, StageOptions {
  /** Folder or name of the model. Default: the embedded one. */
  model?: string | undefined;
  /** The folder of the reference's files (`ID.pkl`), which are then written instead of a store's. */
  pickles?: string | undefined;
  /** Of so many equal parts of the movies, in order of their names, … Default 1. */
  chunk?: number | undefined;
  /** … this one is worked on, from 0 on. */
  index?: number | undefined;
  /** Called when a movie's turn comes, with the number of those before it and of all. */
  onMovie?: ((id: string, done: number, total: number) => void) | undefined;
  onProgress?: OnProgress | undefined;
}

/** What became of a movie. */
export interface MovieFeatures {
  id: string;
  /** `made` now; `finished` by an earlier run; `left-out` because it has no script, as the reference leaves it out; or `failed`. */
  state: 'made' | 'finished' | 'left-out' | 'failed';
  /** What a question is asked of: the file, or the movie's folder in the store. */
  path?: string;
  /** Frames in it, where it was made or found in a store. */
  frames?: number;
  /** Key frames that could not be decoded and were left out. */
  dropped?: number;
  /** What was repaired or is odd, in words. */
  notes: string[];
  /** Why it failed. */
  error?: LlamaVidError;
}

/** Files of text above this are something else. */
const LARGEST_TEXT = 16 << 20;
/** Codes of errors that are one movie's: the others go on. */
const OF_ONE_MOVIE: readonly string[] = [
  'DATA_INVALID',
  'MEDIA_NOT_FOUND',
  'MEDIA_NO_VIDEO',
  'MEDIA_TOO_LARGE',
  'MEDIA_TRUNCATED',
  'MEDIA_UNREADABLE',
  'STORE_LOCKED',
];

/**
 * Makes the features of movies whose shots were found before, in MovieNet's layout: `videos` holds a tar of key frames for each
 * movie (`ID.tar`), `files` the folders `shot`, `meta`, `subtitle` and `script`. What is finished is not made again. Movies without
 * subtitles are none.
 */
export async function* extractMovies(
  videos: string,
  files: string,
  options: MovieFeaturesOptions = {},
): AsyncGenerator<MovieFeatures, void, void> {
  const { model = EMBEDDED, chunk = 1, index = 0, onMovie, ...others } = options;
  if (!(Number.isSafeInteger(chunk) && Number.isSafeInteger(index) && index >= 0 && index < chunk)) {
    throw new LlamaVidError('INVALID_ARGUMENT', `there is no part ${index} of ${chunk}; the first one is 0`);
  }
  const tars = await moviesOf(videos, files);
  const part = Math.ceil(tars.length / chunk);
  const chosen = tars.slice(index * part, (index + 1) * part);
  const { folder, small } = await planLoad(model, others);
  using encoder = await VisualEncoder.load(folder, small);
  if (others.pickles !== undefined) await makeFolder(others.pickles);
  for (const [done, tar] of chosen.entries()) {
    const id = idOf(tar);
    onMovie?.(id, done, chosen.length);
    let made: MovieFeatures;
    try {
      made = await extract(id, join(videos, tar), files, encoder, others);
    } catch (error) {
      if (!(LlamaVidError.is(error) && OF_ONE_MOVIE.includes(error.code))) throw error;
      made = { id, state: 'failed', notes: [], error };
    }
    yield made;
  }
}

async function extract(
  id: string,
  tar: string,
  files: string,
  encoder: VisualEncoder,
  options: Omit<MovieFeaturesOptions, 'model' | 'chunk' | 'index' | 'onMovie'>,
): Promise<MovieFeatures> {
  const { pickles, signal = new AbortController().signal, whenLocked = 'fail', onProgress } = options;
  const script = join(files, 'script', `${id}.script`);
  if (!existsSync(script)) {
    const note = `there is no ${script}, which the reference asks for: an empty file does`;
    return { id, state: 'left-out', notes: [note] };
  }
  const pickle = pickles === undefined ? undefined : join(pickles, `${id}.pkl`);
  if (pickle !== undefined && existsSync(pickle)) return { id, state: 'finished', path: pickle, notes: [] };
  const { times, subtitles, notes } = await readTexts(id, files);
  const { rising, moved } = riseFrom(times);
  if (moved > 0)
    notes.push(`${moved} key frames are not behind the one before them and get its time and a millisecond`);
  const inputs = (kept: readonly number[]) => {
    const left = new Set(kept);
    return movieInputs(
      subtitles,
      times.filter((_, frame) => left.has(rising[frame] ?? Number.NaN)),
    );
  };
  const open = () => openMedia(tar, { frames: times.length, pictureTimes: rising, signal });

  if (pickle !== undefined) {
    await using media = await open();
    using writer = await FeatureFileWriter.create(pickle, encoder);
    await encodeBatches(media, encoder, [], { signal, onProgress }, (batch) => writer.append(batch));
    const { timestamps, dropped, notes: odd } = media.report();
    await writer.finish(inputs(timestamps));
    return { id, state: 'made', path: pickle, frames: timestamps.length, dropped, notes: [...notes, ...odd] };
  }
  // All that features and text depend on besides the tar and the encoder.
  const words = createHash('sha256')
    .update(JSON.stringify([times, subtitles]))
    .digest('hex');
  const place = await placeInStore(tar, encoder, options, JSON.stringify({ movie: words }));
  if (place === undefined) {
    throw new LlamaVidError('INVALID_ARGUMENT', 'there is no store to encode into', {
      hint: 'Give a folder; LLAMAVID_STORE may say `none`.',
    });
  }
  const found = storedClip(place.entry.report, place.path);
  await using media = found ? undefined : await open();
  const required = { ...place, optional: false };
  const encoded = await encodeClip(media, encoder, required, { signal, whenLocked, onProgress, inputs });
  encoded.features.close();
  const { frames, dropped, notes: odd } = encoded.sampling;
  const path = join(place.folder, 'videos', place.entry.key);
  return { id, state: found ? 'finished' : 'made', path, frames, dropped, notes: [...notes, ...odd] };
}

/** Names of the tars whose movies have subtitles, in order. */
async function moviesOf(videos: string, files: string): Promise<string[]> {
  const names = await readdir(videos).catch((cause: NodeJS.ErrnoException) => {
    throw new LlamaVidError('MEDIA_NOT_FOUND', `${videos}: cannot be read: ${cause.message}`, {
      hint: 'Give the folder of the tars of key frames.',
      cause,
    });
  });
  const tars = names.filter((name) => name.endsWith('.tar')).sort();
  const spoken = tars.filter((name) => existsSync(join(files, 'subtitle', `${idOf(name)}.srt`)));
  if (spoken.length > 0) return spoken;
  throw new LlamaVidError(
    'DATA_INVALID',
    `${videos}: none of its ${tars.length} tars has subtitles in ${join(files, 'subtitle')}`,
    { hint: 'A movie is ID.tar here, and ID.srt there.' },
  );
}

function idOf(tar: string): string {
  return basename(tar).split('.')[0] ?? tar;
}

/** When the key frames of a movie are shown, and what is said. */
async function readTexts(
  id: string,
  files: string,
): Promise<{ times: number[]; subtitles: readonly Subtitle[]; notes: string[] }> {
  const shotFile = join(files, 'shot', `${id}.txt`);
  const metaFile = join(files, 'meta', `${id}.json`);
  const { keys, last } = keyFrames(await readText(shotFile), shotFile);
  const minutes = runtimeOf(await readText(metaFile), metaFile);
  const { subtitles, report } = await readGiven(join(files, 'subtitle', `${id}.srt`));
  const fps = last / (minutes * 60);
  return { times: keys.map((key) => key / fps), subtitles, notes: [...report.notes] };
}

/** A shot a line: its first and last frame, and then its key frames. */
function keyFrames(text: string, file: string): { keys: number[]; last: number } {
  const keys: number[] = [];
  let last = 0;
  for (const [at, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    const words = line.trim().split(/\s+/);
    if (words.length < 2 || !words.every((word) => /^\d{1,15}$/.test(word))) {
      throw invalid(`${file}, line ${at + 1}: no shot (first frame, last frame, key frames)`);
    }
    last = Number(words[1]);
    for (const word of words.slice(2)) keys.push(Number(word));
  }
  if (keys.length === 0 || last === 0) throw invalid(`${file}: names no key frames`);
  return { keys, last };
}

/** Minutes of the first version, which stand in words: `142 min`. */
function runtimeOf(text: string, file: string): number {
  let runtime: unknown;
  try {
    runtime = JSON.parse(text).version[0].runtime;
  } catch (cause) {
    throw invalid(`${file}: has no version[0].runtime`, cause);
  }
  const minutes = Number(/\d+/.exec(String(runtime))?.[0] ?? 0);
  if (Number.isSafeInteger(minutes) && minutes > 0) return minutes;
  throw invalid(
    `${file}: version[0].runtime is ${JSON.stringify(runtime)?.slice(0, 40)}, which tells no minutes`,
  );
}

/** Times that rise, as a store wants them: frames of short shots may be one. */
function riseFrom(times: readonly number[]): { rising: number[]; moved: number } {
  let [last, moved] = [-1, 0];
  const rising = times.map((time) => {
    if (time <= last) moved += 1;
    last = time > last ? time : last + 1e-3;
    return last;
  });
  return { rising, moved };
}

async function readText(file: string): Promise<string> {
  try {
    const facts = await stat(file);
    if (!facts.isFile()) throw new Error('it is no file');
    if (facts.size > LARGEST_TEXT) throw new Error(`it has ${facts.size} bytes, more than ${LARGEST_TEXT}`);
    return await readFile(file, 'utf8');
  } catch (cause) {
    throw invalid(`${file}: ${cause instanceof Error ? cause.message : String(cause)}`, cause);
  }
}

async function makeFolder(folder: string): Promise<void> {
  await mkdir(folder, { recursive: true }).catch((cause: NodeJS.ErrnoException) => {
    throw new LlamaVidError('INVALID_ARGUMENT', `${folder}: cannot be made: ${cause.message}`, {
      hint: 'Give a folder that can be written to.',
      cause,
    });
  });
}

function invalid(message: string, cause?: unknown): LlamaVidError {
  return new LlamaVidError('DATA_INVALID', message, {
    hint: "The layout is MovieNet's: shot/ID.txt, meta/ID.json, subtitle/ID.srt and script/ID.script.",
    cause,
  });
}
