/** Pictures that belong together: one, a folder's, or a tar's. */
import { createReadStream } from 'node:fs';
import { open, readdir, readFile, stat } from 'node:fs/promises';
import { basename, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { aborted, tooLarge, truncated, unreadable } from './video-errors.js';

/** A picture file, not read yet. */
export interface Picture {
  readonly name: string;
  readonly read: () => Promise<Uint8Array>;
}

/** Pictures in their order of display, and what was odd about them. */
export interface PictureList {
  readonly pictures: readonly Picture[];
  readonly notes: readonly string[];
  /** Why the list counts as cut off. */
  readonly truncation?: string;
}

/** A picture file above this is none that the decoder would take. */
const MAX_PICTURE_BYTES = 256 * 1024 * 1024;
const MAX_PICTURES = 1_000_000;
const TAR_HEADER_BYTES = 512;
const PICTURE_NAME = /\.(jpe?g|png|webp|gif)$/i;

/** Compares names as people count: `frame_2` before `frame_10`. */
export function naturalOrder(left: string, right: string): number {
  const lefts = left.match(/\d+|\D+/g) ?? [];
  const rights = right.match(/\d+|\D+/g) ?? [];
  for (let part = 0; part < Math.min(lefts.length, rights.length); part += 1) {
    const [a = '', b = ''] = [lefts[part], rights[part]];
    const [isNumberA, isNumberB] = [/^\d/.test(a), /^\d/.test(b)];
    if (isNumberA && isNumberB) {
      const difference = compareNumbers(a, b);
      if (difference !== 0) return difference;
    } else if (a !== b) {
      return a < b ? -1 : 1;
    }
  }
  // Equal but for leading zeros, or one is the other's beginning.
  return lefts.length - rights.length || (left < right ? -1 : left > right ? 1 : 0);
}

/** Names come from others, so numbers in them may have any length. */
function compareNumbers(left: string, right: string): number {
  const [a, b] = [left.replace(/^0+/, ''), right.replace(/^0+/, '')];
  if (a.length !== b.length) return a.length - b.length;
  return a < b ? -1 : a > b ? 1 : 0;
}

/** One file. */
export function pictureFile(path: string, name: string): PictureList {
  return { pictures: [{ name, read: () => readPicture(path, name) }], notes: [] };
}

/** The pictures that lie directly in a folder. */
export async function picturesInFolder(folder: string, name: string): Promise<PictureList> {
  const files = (await readdir(folder, { withFileTypes: true })).filter((entry) => !entry.isDirectory());
  const names = files.map((entry) => entry.name).filter((file) => isPictureName(file));
  if (names.length === 0) {
    throw unreadable(
      name,
      'it is a folder without pictures',
      'Give a video file, or a folder of jpg, png, webp or gif frames.',
    );
  }
  names.sort(naturalOrder);
  const others = files.length - names.length;
  return {
    pictures: names.map((file) => ({
      name: join(name, file),
      read: () => readPicture(join(folder, file), join(name, file)),
    })),
    notes: others > 0 ? [`folder: ${others} files that are no pictures were left out`] : [],
  };
}

/**
 * The pictures in a tar. Nothing is unpacked: a first reading finds where each picture's bytes are, so that names
 * in it lead nowhere and only pictures that are taken come into memory.
 */
export async function picturesInTar(path: string, name: string, signal?: AbortSignal): Promise<PictureList> {
  const found: { file: string; offset: number; size: number }[] = [];
  let others = 0;
  let cutOff: string | undefined;
  const { extract } = await import('tar-stream');
  const reader = extract();
  reader.on('entry', ({ name: file, size, type }, bytes, next) => {
    if ((type === 'file' || type === 'contiguous-file') && isPictureName(basename(file))) {
      found.push({ file, offset: bytes.offset + TAR_HEADER_BYTES, size });
    } else if (type !== 'directory') {
      others += 1;
    }
    bytes.on('error', () => undefined); // the pipeline below reports it; unheard here it would end the process
    bytes.on('end', () =>
      next(
        found.length > MAX_PICTURES
          ? tooLarge(name, `it holds more than ${MAX_PICTURES} pictures`, 'Split it.')
          : null,
      ),
    );
    bytes.resume();
  });
  try {
    await pipeline(createReadStream(path), reader, { ...(signal && { signal }) });
  } catch (error) {
    if (signal?.aborted) throw aborted(name, signal.reason);
    if (error instanceof Error && 'code' in error && error.code === 'MEDIA_TOO_LARGE') throw error;
    cutOff = error instanceof Error ? error.message : String(error);
  }
  const { size: fileSize } = await stat(path);
  const whole = found.filter(({ offset, size }) => offset + size <= fileSize);
  if (whole.length === 0) {
    if (cutOff !== undefined) throw truncated(name, `no picture in this tar is whole (${cutOff})`);
    throw unreadable(name, 'it is a tar without pictures', 'Put jpg, png, webp or gif frames into it.');
  }
  whole.sort((left, right) => naturalOrder(left.file, right.file));
  const truncation =
    cutOff === undefined && whole.length === found.length
      ? undefined
      : `the tar is cut off behind ${whole.length} pictures`;
  return {
    pictures: whole.map(({ file, offset, size }) => ({
      name: `${name}:${file}`,
      read: () => readPart(path, `${name}:${file}`, offset, size),
    })),
    notes: [
      ...(truncation === undefined ? [] : [`truncated: ${truncation}`]),
      ...(others > 0 ? [`tar: ${others} entries that are no pictures were left out`] : []),
    ],
    ...(truncation !== undefined && { truncation }),
  };
}

/** macOS puts `._` files beside each file. */
function isPictureName(file: string): boolean {
  return PICTURE_NAME.test(file) && !file.startsWith('.');
}

async function readPicture(path: string, name: string): Promise<Uint8Array> {
  checkSize((await stat(path)).size, name);
  return readFile(path);
}

async function readPart(path: string, name: string, offset: number, size: number): Promise<Uint8Array> {
  checkSize(size, name);
  const file = await open(path);
  try {
    const { buffer, bytesRead } = await file.read(new Uint8Array(size), 0, size, offset);
    return buffer.subarray(0, bytesRead);
  } finally {
    await file.close();
  }
}

function checkSize(size: number, name: string): void {
  if (size <= MAX_PICTURE_BYTES) return;
  throw tooLarge(
    name,
    `the picture has ${size} bytes`,
    `At most ${MAX_PICTURE_BYTES} are read: save it smaller.`,
  );
}
