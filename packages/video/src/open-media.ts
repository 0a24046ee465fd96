/** The one way in: from any source to {@link Media}. */
import { open as openFile, readFile, stat } from 'node:fs/promises';
import { availableParallelism } from 'node:os';
import { LlamaVidError } from '@llamavid/errors';
import { type ContentType, contentType, HEAD_BYTES, isAnimatedGif } from './content-type.js';
import { checkSampling } from './frame-choice.js';
import type { Media } from './media.js';
import { type PictureList, pictureFile, picturesInFolder, picturesInTar } from './picture-list.js';
import { openPictures } from './picture-media.js';
import { spool } from './spooled-file.js';
import { aborted, notFound, unreadable } from './video-errors.js';
import { openVideo } from './video-media.js';

/** A path, the bytes of a file, or a stream of them. */
export type MediaSource = string | Uint8Array | ReadableStream<Uint8Array> | AsyncIterable<Uint8Array>;

export interface OpenMediaOptions {
  /** Frames a second. Default 1. */
  fps?: number | undefined;
  /** Exactly this many frames (or all, where there are fewer), spread evenly; instead of `fps`. */
  frames?: number | undefined;
  /** At most this many of the frames that `fps` or `frames` choose, spread evenly over them. */
  maxFrames?: number | undefined;
  /** Second of the first frame that may be taken. Default 0. */
  start?: number | undefined;
  /** Second before which the last frame lies. Default: the end. */
  end?: number | undefined;
  /** Makes damaged and cut-off sources an error (`MEDIA_TRUNCATED`) instead of a note. */
  strict?: boolean | undefined;
  /** What messages call a source that has no path. */
  name?: string | undefined;
  /** Stops opening with `ABORTED`. */
  signal?: AbortSignal | undefined;
  /** Width × height above which a video is refused (`MEDIA_TOO_LARGE`) before anything is decoded. Default 8192 × 8192. */
  maxPixels?: number | undefined;
  /** Bytes above which a stream is refused (`MEDIA_TOO_LARGE`). Default 16 GiB. */
  maxStreamBytes?: number | undefined;
  /** For folders and tars: how many of their pictures are a second. Default 1. */
  pictureFps?: number | undefined;
  /** For folders and tars: seconds of each of their pictures, rising; instead of `pictureFps`. */
  pictureTimes?: readonly number[] | undefined;
  /**
   * Threads of the decoder. Default: up to 4. Two take two thirds of one's time and some per cent more of the processor's, so one
   * is best where several videos are read at once, or what follows is slower.
   */
  decoderThreads?: number | undefined;
}

const MAX_PIXELS = 8192 * 8192;
const MAX_STREAM_BYTES = 16 * 1024 ** 3;
const MAX_DECODER_THREADS = 4;

/** A source as a file or folder. */
interface Located {
  readonly file: string;
  readonly name: string;
  readonly path: string | undefined;
  readonly dispose: () => Promise<void>;
}

/**
 * Opens a video, a picture, a folder of frames or a tar of frames. What it is, is told by the content.
 *
 * The video is looked through but nothing is decoded yet.
 */
export async function openMedia(source: MediaSource, options: OpenMediaOptions = {}): Promise<Media> {
  const { signal } = options;
  checkOptions(options);
  if (signal?.aborted) throw aborted(nameOf(source, options), signal.reason);
  const located = await locate(source, options);
  try {
    return await openLocated(located, options);
  } catch (error) {
    await located.dispose();
    throw error;
  }
}

async function locate(source: MediaSource, options: OpenMediaOptions): Promise<Located> {
  const name = nameOf(source, options);
  if (typeof source === 'string') {
    return { file: source, name, path: source, dispose: () => Promise.resolve() };
  }
  const { signal, maxStreamBytes = MAX_STREAM_BYTES } = options;
  const isBytes = source instanceof Uint8Array;
  if (!isBytes && !(typeof source === 'object' && source !== null && Symbol.asyncIterator in source)) {
    throw new LlamaVidError(
      'INVALID_ARGUMENT',
      `A ${source === null ? 'null' : typeof source} is no media source.`,
      {
        hint: 'Give a path, a Uint8Array, a ReadableStream or another async iterable of Uint8Array.',
      },
    );
  }
  const { path, dispose } = await spool(
    isBytes ? [source] : source,
    name,
    isBytes ? Number.POSITIVE_INFINITY : maxStreamBytes,
    signal,
  );
  return { file: path, name, path: undefined, dispose };
}

async function openLocated(located: Located, options: OpenMediaOptions): Promise<Media> {
  const { file, name } = located;
  const { fps, frames, maxFrames, start, end, strict = false, signal } = options;
  const sampling = { fps, frames, maxFrames, start, end };
  const openList = (list: PictureList, kind: 'image' | 'video', notes: readonly string[] = []) => {
    const { pictureTimes } = options;
    const seconds = pictureTimes?.at(-1) || pictureTimes?.length;
    const pictureFps = pictureTimes && seconds ? pictureTimes.length / seconds : (options.pictureFps ?? 1);
    const settings = { ...located, kind, sampling, pictureFps, pictureTimes, strict, notes };
    return openPictures(list, settings, signal);
  };

  const type = await look(file, name);
  switch (type) {
    case 'folder':
      return openList(await picturesInFolder(file, name), 'video');
    case 'tar':
      return openList(await picturesInTar(file, name, signal), 'video');
    case 'gzip':
      throw unreadable(name, 'it is compressed with gzip', 'Unpack it first: gunzip FILE');
    case 'animated-webp':
      return openList(pictureFile(file, name), 'image', [
        'webp: only the first frame of the animation is read',
      ]);
    case 'jpeg':
    case 'png':
    case 'webp':
      return openList(pictureFile(file, name), 'image');
    case 'gif':
      if (!isAnimatedGif(await readFile(file))) return openList(pictureFile(file, name), 'image');
  }
  if (options.pictureTimes !== undefined) {
    throw unreadable(name, 'it is no folder or tar of pictures', 'Give one, or leave the times out.');
  }
  const { maxPixels = MAX_PIXELS, decoderThreads = Math.min(availableParallelism(), MAX_DECODER_THREADS) } =
    options;
  return openVideo(located, { sampling, strict, maxPixels, decoderThreads }, signal);
}

/** What lies at a path. Anything but files and folders is refused: reading a pipe or device may never end. */
export async function look(path: string, name: string): Promise<ContentType | 'folder'> {
  try {
    const found = await stat(path);
    if (found.isDirectory()) return 'folder';
    if (!found.isFile())
      throw unreadable(
        name,
        'it is neither a file nor a folder',
        'Give a stream instead of a pipe: openMedia(process.stdin)',
      );
    if (found.size === 0) throw unreadable(name, 'it is empty', 'Copy or download the file again.');
    const handle = await openFile(path);
    try {
      const { buffer, bytesRead } = await handle.read(Buffer.alloc(HEAD_BYTES), 0, HEAD_BYTES, 0);
      return contentType(buffer.subarray(0, bytesRead));
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (error instanceof LlamaVidError) throw error;
    const { code, message } = error as NodeJS.ErrnoException;
    if (/^[a-z][a-z0-9+.-]+:\/\//i.test(path)) {
      throw new LlamaVidError('INVALID_ARGUMENT', `${name} is an address, not a file.`, {
        hint: 'Fetch it and give the body: openMedia((await fetch(url)).body)',
        cause: error,
      });
    }
    if (code === 'ENOENT' || code === 'ENOTDIR') throw notFound(name);
    throw new LlamaVidError('MEDIA_UNREADABLE', `${name} cannot be read: ${message}`, {
      hint:
        code === 'EACCES' || code === 'EPERM'
          ? 'Give this user the right to read it.'
          : 'Check the file and the disk.',
      cause: error,
    });
  }
}

function checkOptions(options: OpenMediaOptions): void {
  checkSampling(options);
  for (const key of ['maxPixels', 'maxStreamBytes', 'decoderThreads'] as const) {
    const value = options[key];
    if (value === undefined || (Number.isSafeInteger(value) && value > 0)) continue;
    throw new LlamaVidError('INVALID_ARGUMENT', `${key} is ${value}.`, {
      hint: 'Give a whole number above 0.',
    });
  }
  const { pictureFps, pictureTimes } = options;
  if (pictureTimes?.some((time, at) => !Number.isFinite(time) || time <= (pictureTimes[at - 1] ?? -1))) {
    throw new LlamaVidError('INVALID_ARGUMENT', 'pictureTimes are no rising seconds.');
  }
  if (pictureFps !== undefined && !(Number.isFinite(pictureFps) && pictureFps > 0)) {
    throw new LlamaVidError('INVALID_ARGUMENT', `pictureFps is ${pictureFps}.`, {
      hint: 'Give a number above 0.',
    });
  }
}

function nameOf(source: MediaSource, { name }: OpenMediaOptions): string {
  if (name !== undefined) return name;
  if (typeof source === 'string') return source;
  return source instanceof Uint8Array ? 'The given data' : 'The given stream';
}
