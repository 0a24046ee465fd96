import { open } from 'node:fs/promises';
import { LlamaVidError } from '@llamavid/errors';
import { checkSubtitles, parseSubtitles, type Subtitle } from '@llamavid/llm';

/**
 * Path of a `.srt` or `.vtt` file, its bytes, or subtitles from elsewhere. `none` is no file's name but none at all, and `auto`
 * is kept for the subtitles inside a video file, which are not read yet.
 */
export type SubtitleSource = 'none' | (string & {}) | Uint8Array | readonly Subtitle[];

/** The subtitles that an answer saw. */
export interface SubtitleReport {
  /** Their file, if they came from one. */
  path?: string;
  /** Subtitles in the prompt. */
  count: number;
  /** What was left out or is odd, in words. */
  notes: string[];
}

/** @internal Subtitles of one video, ready for a prompt. */
export interface ReadSubtitles {
  subtitles: readonly Subtitle[];
  report: SubtitleReport;
}

/** A day of talk has 2 MB of subtitles; a file far above that is something else, such as the video itself. */
const LARGEST_FILE = 64 << 20;

/** @internal Reads subtitles; `undefined` for `none`. */
export async function readSubtitles(source: SubtitleSource): Promise<ReadSubtitles | undefined> {
  if (source === 'none') return undefined;
  if (source === 'auto') {
    throw new LlamaVidError('INVALID_ARGUMENT', 'subtitles inside a video file are not read yet', {
      hint: 'Write them to a file first: ffmpeg -i video.mkv subtitles.srt. A file named `auto` is ./auto.',
    });
  }
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
        hint: 'Give a .srt or .vtt file.',
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
    { hint: 'Give the .srt or .vtt file, not the video.' },
  );
}
