/** Videos, pictures and lists of questions, written to a folder. */
import { randomUUID } from 'node:crypto';
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import { callNative, callNativeAsync, WorldVideo } from '@llamavid/native';
import { writeVideo } from '@llamavid/video';
import { type AskedMedia, questionRows, type TrainingRecord, trainingRecords } from './rows.js';

/**
 * What can be rendered: a picture, one scene, one to six scenes with cuts, many scenes with subtitles, ten minutes of scenes of which
 * one shows an object that no other does.
 */
export const worldKinds = ['image', 'clip', 'multi', 'long', 'needle'] as const;
export type WorldKind = (typeof worldKinds)[number];

const neverTrainedChoices = ['forbid', 'allow', 'only'] as const;
/** Whether the six pairs of colour and shape that training leaves out may be shown, or nothing else is. */
export type NeverTrained = (typeof neverTrainedChoices)[number];

const phrasings = ['trained', 'unseen', 'mixed'] as const;
/** The phrasings that training uses, those that it never uses, or both. */
export type Phrasing = (typeof phrasings)[number];

export interface RenderWorldOptions {
  /** Where the files go; made if missing. Files of the same names are replaced. */
  readonly folder: string;
  /** Equal seeds give equal files. Default 0. */
  readonly seed?: number | undefined;
  /** Files of each kind. Default 10. */
  readonly count?: number | undefined;
  /** Default `['image', 'clip', 'multi']`: a long video takes as long as a hundred others. */
  readonly kinds?: readonly WorldKind[] | undefined;
  /** Default `'forbid'`. */
  readonly neverTrained?: NeverTrained | undefined;
  /** Default `'trained'`. */
  readonly phrasing?: Phrasing | undefined;
  /** Stops with `ABORTED`. Finished media stay; the lists are only written at the end. */
  readonly signal?: AbortSignal | undefined;
  /** Called behind each file. */
  readonly onProgress?: ((progress: RenderWorldProgress) => void) | undefined;
}

export interface RenderWorldProgress {
  /** Files done. */
  readonly done: number;
  /** Files in all. */
  readonly total: number;
  /** The file that was just finished, from the folder. */
  readonly file: string;
}

export interface RenderedWorld {
  readonly folder: string;
  /** Media files, from the folder, in the order of the lists. */
  readonly files: readonly string[];
  /** Lists that were written, from the folder. */
  readonly lists: readonly string[];
  /** Rows of `qa.jsonl`. */
  readonly questions: number;
  /** Length of all videos together. */
  readonly seconds: number;
}

const LARGEST_COUNT = 1_000_000;

/**
 * Renders `count` files of each kind with every question that can be asked about them:
 *
 * - `media/<kind>-<number>.mp4` or `.png`, for long videos with an `.srt` beside it;
 * - `qa.jsonl`, one question a line;
 * - `train.json`, the same as a training list in LLaVA's format, and `pretrain.json`, of it the descriptions. Long
 *   videos, needles and unseen phrasings are in neither.
 *
 * A file depends on seed, kind and number only: a larger count adds files and changes none.
 *
 * @throws `INVALID_ARGUMENT`, `MEDIA_NOT_FOUND`, `DISK_FULL`, `ABORTED`.
 */
export async function renderWorld(options: RenderWorldOptions): Promise<RenderedWorld> {
  const { folder, seed, count, kinds, neverTrained, phrasing, signal, onProgress } = checked(options);
  throwIfAborted(signal);
  await writing(folder, () => mkdir(join(folder, 'media'), { recursive: true }));
  const all: AskedMedia[] = [];
  let seconds = 0;
  for (const kind of kinds) {
    for (let index = 0; index < count; index += 1) {
      throwIfAborted(signal);
      const name = `${kind}-${String(index).padStart(3, '0')}`;
      const video = callNative(() => new WorldVideo({ seed, index, kind, neverTrained, phrasing }));
      const asked = await write(folder, name, kind, video, signal);
      all.push(asked);
      if (kind !== 'image') seconds += video.frameCount / video.fps;
      onProgress?.({ done: all.length, total: kinds.length * count, file: asked.media });
    }
  }
  throwIfAborted(signal);
  const rows = all.flatMap(questionRows);
  const records = all.flatMap(trainingRecords);
  await writeWhole(folder, 'qa.jsonl', rows.map((row) => `${JSON.stringify(row)}\n`).join(''));
  await writeWhole(folder, 'train.json', list(records));
  await writeWhole(folder, 'pretrain.json', list(records.filter(({ type }) => type === 'describe')));
  return {
    folder,
    files: all.map(({ media }) => media),
    lists: ['qa.jsonl', 'train.json', 'pretrain.json'],
    questions: rows.length,
    seconds,
  };
}

function checked(options: RenderWorldOptions) {
  const { folder, seed = 0, count = 10, kinds = ['image', 'clip', 'multi'] } = options;
  const { neverTrained = 'forbid', phrasing = 'trained', signal, onProgress } = options;
  if (typeof folder !== 'string' || folder === '')
    throw wrong('folder is empty', 'Name the folder to write to.');
  if (!Number.isSafeInteger(seed) || seed < 0) {
    throw wrong(`seed is ${seed}, but must be a whole number, 0 or above`);
  }
  if (!Number.isInteger(count) || count < 1 || count > LARGEST_COUNT) {
    throw wrong(`count is ${count}, but must be a whole number from 1 to ${LARGEST_COUNT}`);
  }
  if (kinds.length === 0) throw wrong('kinds is empty', `Kinds are ${worldKinds.join(', ')}.`);
  for (const kind of kinds) oneOf('kind', kind, worldKinds);
  oneOf('neverTrained', neverTrained, neverTrainedChoices);
  oneOf('phrasing', phrasing, phrasings);
  return { folder, seed, count, kinds: [...new Set(kinds)], neverTrained, phrasing, signal, onProgress };
}

function oneOf(name: string, value: string, values: readonly string[]): void {
  if (!values.includes(value)) throw wrong(`${name} is ${value}, but must be one of ${values.join(', ')}`);
}

/** Writes the picture or the video with its subtitles. */
async function write(
  folder: string,
  name: string,
  kind: WorldKind,
  video: WorldVideo,
  signal: AbortSignal | undefined,
): Promise<AskedMedia> {
  const { questions, framesAtOneASecond: frames, srt } = video;
  if (kind === 'image') {
    const media = `media/${name}.png`;
    await writeWhole(folder, media, await callNativeAsync(() => video.toPng()));
    return { name, kind, media, subtitles: null, frames, questions };
  }
  const media = `media/${name}.mp4`;
  const { width, height, fps, crf } = video;
  await writeVideo(join(folder, media), framesOf(video), {
    width,
    height,
    fps,
    crf,
    preset: 'veryfast',
    signal,
  });
  const subtitles = srt === '' ? null : `media/${name}.srt`;
  if (subtitles !== null) await writeWhole(folder, subtitles, srt);
  return { name, kind, media, subtitles, frames, questions };
}

async function* framesOf(video: WorldVideo): AsyncGenerator<Uint8Array, void, undefined> {
  const { frameCount } = video;
  for (let index = 0; index < frameCount; index += 1) {
    yield await callNativeAsync(() => video.renderFrame(index));
  }
}

function list(records: readonly (TrainingRecord & { type: string })[]): string {
  const lines = records.map(({ type: _, ...record }) => JSON.stringify(record));
  return `[\n${lines.join(',\n')}\n]\n`;
}

/** Writes a file under another name and gives it its own when it is complete. */
async function writeWhole(folder: string, file: string, data: string | Uint8Array): Promise<void> {
  const path = join(folder, file);
  const unfinished = `${path}.${randomUUID()}.part`;
  try {
    await writing(path, async () => {
      await writeFile(unfinished, data);
      await rename(unfinished, path);
    });
  } catch (error) {
    await rm(unfinished, { force: true });
    throw error;
  }
}

async function writing(path: string, work: () => Promise<unknown>): Promise<void> {
  try {
    await work();
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === 'ENOSPC' || code === 'EDQUOT') {
      throw new LlamaVidError('DISK_FULL', `There is no room for ${path}.`, {
        hint: 'Free some space, or write to another disk.',
        cause: error,
      });
    }
    throw new LlamaVidError('INVALID_ARGUMENT', `${path} cannot be written: ${message}.`, {
      hint: 'Choose a folder that this user may write to.',
      cause: error,
    });
  }
}

function throwIfAborted(signal: AbortSignal | undefined): void {
  if (signal?.aborted) {
    throw new LlamaVidError('ABORTED', 'Rendering the world was aborted.', { cause: signal.reason });
  }
}

function wrong(message: string, hint?: string): LlamaVidError {
  return new LlamaVidError('INVALID_ARGUMENT', `${message}.`, { hint });
}
