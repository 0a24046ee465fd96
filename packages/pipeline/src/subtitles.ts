import { open, readdir } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import { LlamaVidError } from '@llamavid/errors';
import { checkSubtitles, parseSubtitles, readSubtitleStream, type Subtitle } from '@llamavid/llm';
import type { Media, SubtitleStream } from '@llamavid/video';
import { hear, type Speech, type SpeechOptions, speechModelOf } from './speech.js';

/**
 * Path of a `.srt`, `.vtt`, `.ass` or `.ssa` file, its bytes, or subtitles from elsewhere. `speech` is what a Whisper model hears.
 * `auto` takes the file beside the video that has its name, else a text stream of the video file, else, with a speech model, what that
 * hears, else none. A file of such a name is `./none`, `./auto`, `./speech`.
 */
export type SubtitleSource = 'none' | 'auto' | 'speech' | (string & {}) | Uint8Array | readonly Subtitle[];

/** The subtitles that an answer saw. */
export interface SubtitleReport {
  /** Their file, if they came from one. */
  path?: string;
  /** The text stream of the video file, if they came from one. */
  stream?: Pick<SubtitleStream, 'index' | 'format' | 'language' | 'title'>;
  /** The Whisper model that heard them, and the language that it told, if they are speech. */
  speech?: Pick<Speech, 'model' | 'language'>;
  /** Subtitles in the prompt. */
  count: number;
  /** What was left out or is odd, in words. */
  notes: string[];
}

/** @internal Subtitles of one video, ready for a prompt. */
export interface ReadSubtitles {
  subtitles: readonly Subtitle[];
  /** The text with an `<image>` for each frame instead, where features came with it. */
  inputs?: string | undefined;
  report: SubtitleReport;
}

/** What subtitles belong to, opened or known from the store. */
type Spoken = Pick<Media, 'kind' | 'info' | 'subtitles'>;

/** A day of talk has 2 MB of subtitles; a file far above that is something else, such as the video itself. */
const LARGEST_FILE = 64 << 20;

interface ReadOptions extends SpeechOptions {
  signal?: AbortSignal | undefined;
}

/** @internal Whether subtitles are looked for in the video itself, so that they belong to it whichever it is. */
export function isFound(source: SubtitleSource): boolean {
  return source === 'none' || source === 'auto' || source === 'speech';
}

/** @internal Reads what is said in `media`; `undefined` for `none`, and where nothing is found or heard. */
export async function readSubtitles(
  source: SubtitleSource,
  media: Spoken,
  options: ReadOptions,
): Promise<ReadSubtitles | undefined> {
  if (source === 'none' || (source === 'auto' && media.kind === 'image')) return undefined;
  if (media.kind === 'image') {
    throw new LlamaVidError('INVALID_ARGUMENT', 'subtitles were given for a picture', {
      hint: 'Give them with the video that they belong to.',
    });
  }
  if (source === 'auto') return await findSubtitles(media, options);
  return source === 'speech' ? await hearSubtitles(media, options) : await readGiven(source);
}

/** @internal Reads a file or what else was given, whatever it belongs to. */
export async function readGiven(source: SubtitleSource): Promise<ReadSubtitles> {
  const path = typeof source === 'string' ? source : undefined;
  const read =
    path !== undefined
      ? await parseSubtitles(await readFile(path), path)
      : source instanceof Uint8Array
        ? await parseSubtitles(checkLength(source, 'the subtitles'), 'the subtitles')
        : checkSubtitles(source as readonly Subtitle[]);
  const { subtitles, notes } = read;
  return { subtitles, report: { ...(path !== undefined && { path }), count: subtitles.length, notes } };
}

async function findSubtitles(media: Spoken, options: ReadOptions): Promise<ReadSubtitles | undefined> {
  const [file, ...others] = await filesBeside(media.info.path);
  if (file !== undefined) {
    const read = await readGiven(file);
    const notes = others.map((other) => `${other} is beside the video too and was not taken`);
    return { ...read, report: { ...read.report, notes: [...read.report.notes, ...notes] } };
  }
  const found = await media.subtitles({ signal: options.signal });
  if (found !== undefined) {
    const { cues, notes, ...stream } = found;
    const { subtitles, notes: repairs } = await readSubtitleStream(stream.format, cues);
    const report = { stream, count: subtitles.length, notes: [...notes, ...repairs] };
    if (subtitles.length > 0) return { subtitles, report };
  }
  if (media.info.path === undefined || speechModelOf(options) === undefined) return undefined;
  try {
    return await hearSubtitles(media, options);
  } catch (error) {
    if (LlamaVidError.is(error) && error.code === 'MEDIA_NO_AUDIO') return undefined;
    throw error;
  }
}

async function hearSubtitles(
  { info: { path } }: Spoken,
  options: ReadOptions,
): Promise<ReadSubtitles | undefined> {
  const model = speechModelOf(options);
  if (path === undefined || model === undefined) {
    throw new LlamaVidError(
      'INVALID_ARGUMENT',
      path === undefined
        ? 'speech can be written down from a file only'
        : 'speech was to be written down, but no speech model is named',
      { hint: 'Give a file, and a Whisper model: speechModel, --speech-model or LLAMAVID_SPEECH_MODEL.' },
    );
  }
  const { subtitles, notes, ...speech } = await hear(path, model, options);
  if (subtitles.length === 0) return undefined;
  const keep = 'speech: heard anew each time; `llamavid transcribe` writes it beside the video for good';
  return { subtitles, report: { speech, count: subtitles.length, notes: [...notes, keep] } };
}

const ENDINGS = ['.srt', '.vtt', '.ass', '.ssa'];
/** A language, `en` or `pt-BR`, and what players put behind it. */
const MIDDLE = /^(\.([a-z]{2,3}([-_][a-z0-9]{2,4})?|forced|default|full))*$/;

/**
 * Files beside a video that have its name and an ending of subtitles, maybe with a language between (`film.en.srt`). First the one
 * without, then English, which the language models were trained on; those of signs alone (`forced`) are last.
 */
async function filesBeside(path: string | undefined): Promise<string[]> {
  if (path === undefined) return [];
  const stem = basename(path, extname(path));
  const middle = (name: string) => name.slice(stem.length, -extname(name).length).toLowerCase();
  const rank = (name: string) => {
    const between = middle(name);
    const kind = between === '' ? 0 : /forced/.test(between) ? 3 : /^\.eng?\b/.test(between) ? 1 : 2;
    return kind * ENDINGS.length + ENDINGS.indexOf(extname(name).toLowerCase());
  };
  const names = await readdir(dirname(path)).catch((): string[] => []);
  return names
    .filter((name) => ENDINGS.includes(extname(name).toLowerCase()))
    .filter((name) => name.startsWith(`${stem}.`) && MIDDLE.test(middle(name)))
    .sort((left, right) => rank(left) - rank(right) || (left < right ? -1 : 1))
    .map((name) => join(dirname(path), name));
}

/**
 * @internal What is said while the chosen part of a video runs. Without borders it is everything, wherever the reference puts what
 * ends before the first frame.
 */
export function subtitlesWithin(
  read: ReadSubtitles,
  { start, end }: { start?: number | undefined; end?: number | undefined },
  frameTimes: readonly number[],
): ReadSubtitles {
  if (start === undefined && end === undefined) return read;
  const first = start === undefined ? Number.NEGATIVE_INFINITY : Math.max(start, frameTimes[0] ?? start);
  const subtitles = read.subtitles.filter(
    (each) => each.end > first && (end === undefined || each.start < end),
  );
  const left = read.subtitles.length - subtitles.length;
  const notes = [...read.report.notes];
  if (left > 0) notes.push(`${left} of the subtitles lie outside the part of the video that was chosen`);
  return { subtitles, report: { ...read.report, count: subtitles.length, notes } };
}

async function readFile(path: string): Promise<Uint8Array> {
  let handle: Awaited<ReturnType<typeof open>> | undefined;
  try {
    handle = await open(path);
    const facts = await handle.stat();
    if (!facts.isFile()) {
      throw new LlamaVidError('DATA_INVALID', `${path}: is not a file`, {
        hint: 'Give a .srt, .vtt or .ass file.',
      });
    }
    if (facts.size > LARGEST_FILE) throw tooLarge(path, facts.size);
    return checkLength(await handle.readFile(), path);
  } catch (error) {
    if (error instanceof LlamaVidError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    const missing = code === 'ENOENT' || code === 'ENOTDIR';
    throw new LlamaVidError(
      missing ? 'MEDIA_NOT_FOUND' : 'DATA_INVALID',
      missing ? `${path}: there is no such file of subtitles` : `${path}: cannot be read: ${message}`,
      { hint: 'Check the path; `none` asks without subtitles.', cause: error },
    );
  } finally {
    await handle?.close();
  }
}

function checkLength(bytes: Uint8Array, name: string): Uint8Array {
  if (bytes.length > LARGEST_FILE) throw tooLarge(name, bytes.length);
  return bytes;
}

function tooLarge(name: string, bytes: number): LlamaVidError {
  return new LlamaVidError(
    'MEDIA_TOO_LARGE',
    `${name}: ${bytes} bytes are too many for subtitles; the limit is ${LARGEST_FILE}`,
    { hint: 'Give the .srt, .vtt or .ass file, not the video.' },
  );
}
