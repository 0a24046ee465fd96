/**
 * How many bytes a container says it has, to tell a file that was cut off from a whole one.
 *
 * Decoders read a cut-off Matroska or AVI file to its end without a word.
 */
import type { FileHandle } from 'node:fs/promises';

/** What the outermost structure of a file promises. */
export interface DeclaredSize {
  /** Bytes the file should have; undefined where its format does not say. */
  readonly bytes: number | undefined;
  /** Whether it is an MP4 whose index (`moov`) is not there, so that nothing of it can be decoded. */
  readonly indexMissing: boolean;
}

const UNKNOWN: DeclaredSize = { bytes: undefined, indexMissing: false };
const EBML = 0x1a45dfa3;
const MATROSKA_SEGMENT = 0x18538067;
/** QuickTime files may come without `ftyp`. */
const MP4_FIRST_BOXES = new Set(['ftyp', 'moov', 'mdat', 'wide', 'free', 'skip']);
/** Files have some ten boxes, fragmented ones two a fragment. */
const MOST_BOXES = 100_000;

/** Reads the sizes in the headers of MP4, Matroska and RIFF files. `fileSize` in bytes. */
export async function readDeclaredSize(file: FileHandle, fileSize: number): Promise<DeclaredSize> {
  const head = await readAt(file, 0, 12);
  if (head.length < 12) return UNKNOWN;
  if (head.readUInt32BE(0) === EBML) return { bytes: await matroskaSize(file), indexMissing: false };
  if (head.toString('latin1', 0, 4) === 'RIFF')
    return { bytes: head.readUInt32LE(4) + 8, indexMissing: false };
  if (MP4_FIRST_BOXES.has(head.toString('latin1', 4, 8))) return mp4Size(file, fileSize);
  return UNKNOWN;
}

async function mp4Size(file: FileHandle, fileSize: number): Promise<DeclaredSize> {
  let offset = 0;
  let index = false;
  for (let box = 0; box < MOST_BOXES && offset < fileSize; box += 1) {
    const head = await readAt(file, offset, 16);
    if (head.length < 8) return { bytes: offset + 8, indexMissing: !index };
    const type = head.toString('latin1', 4, 8);
    // What follows the last box of some recorders is no box.
    if (!/^[\w ©-]{4}$/.test(type)) break;
    if (type === 'moov') index = true;
    const short = head.readUInt32BE(0);
    const size = short === 1 && head.length === 16 ? Number(head.readBigUInt64BE(8)) : short;
    if (size === 0) return { bytes: fileSize, indexMissing: !index }; // 0: up to the end of the file
    if (size < 8) break;
    offset += size;
  }
  return { bytes: offset, indexMissing: !index };
}

async function matroskaSize(file: FileHandle): Promise<number | undefined> {
  const ebml = await readVariableInteger(file, 4);
  if (ebml === undefined) return undefined;
  const segment = ebml.end + ebml.value;
  const id = await readAt(file, segment, 4);
  if (id.length < 4 || id.readUInt32BE(0) !== MATROSKA_SEGMENT) return undefined;
  const size = await readVariableInteger(file, segment + 4);
  return size && size.end + size.value;
}

/** An EBML size; undefined where it says "unknown", which live streams do. */
async function readVariableInteger(
  file: FileHandle,
  offset: number,
): Promise<{ value: number; end: number } | undefined> {
  const bytes = await readAt(file, offset, 8);
  const first = bytes[0];
  if (!first) return undefined;
  const length = Math.clz32(first) - 23;
  if (bytes.length < length) return undefined;
  let value = BigInt(first & ((1 << (8 - length)) - 1));
  for (const byte of bytes.subarray(1, length)) value = (value << 8n) | BigInt(byte);
  const unknown = (1n << BigInt(7 * length)) - 1n;
  return value === unknown ? undefined : { value: Number(value), end: offset + length };
}

async function readAt(file: FileHandle, offset: number, length: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read(Buffer.alloc(length), 0, length, offset);
  return buffer.subarray(0, bytesRead);
}
