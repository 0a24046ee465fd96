/** What a file holds, by its content; names lie. */

/** `video` is everything that FFmpeg must look at. */
export type ContentType = 'jpeg' | 'png' | 'webp' | 'animated-webp' | 'gif' | 'tar' | 'gzip' | 'video';

/** Enough for the chunks in front of a PNG's data, and for a tar header. */
export const HEAD_BYTES = 64 * 1024;

/** Tells what starts with `head`, the first {@link HEAD_BYTES} of a file or all of a shorter one. */
export function contentType(head: Buffer): ContentType {
  const text = head.toString('latin1', 0, 16);
  if (text.startsWith('\xff\xd8\xff')) return 'jpeg';
  if (text.startsWith('\x89PNG\r\n\x1a\n')) return isAnimatedPng(head) ? 'video' : 'png';
  if (text.startsWith('RIFF') && text.startsWith('WEBP', 8)) {
    const isAnimated = text.startsWith('VP8X', 12) && ((head[20] ?? 0) & 2) !== 0;
    return isAnimated ? 'animated-webp' : 'webp';
  }
  if (text.startsWith('GIF87a') || text.startsWith('GIF89a')) return 'gif';
  if (text.startsWith('\x1f\x8b')) return 'gzip';
  return isTar(head) ? 'tar' : 'video';
}

/** Whether a GIF has a second picture. `file` is all of it. */
export function isAnimatedGif(file: Uint8Array): boolean {
  const colorTable = (flags: number) => ((flags & 0x80) === 0 ? 0 : 3 << ((flags & 7) + 1));
  const skipSubBlocks = (from: number): number => {
    let at = from;
    while ((file[at] ?? 0) !== 0) at += 1 + (file[at] ?? 0);
    return at + 1;
  };
  let pictures = 0;
  let at = 13 + colorTable(file[10] ?? 0);
  while (at < file.length) {
    if (file[at] === 0x21) {
      at = skipSubBlocks(at + 2);
    } else if (file[at] === 0x2c) {
      pictures += 1;
      if (pictures === 2) return true;
      at = skipSubBlocks(at + 11 + colorTable(file[at + 9] ?? 0));
    } else {
      return false;
    }
  }
  return false;
}

function isAnimatedPng(head: Buffer): boolean {
  for (let at = 8; at + 8 <= head.length; at += 12 + head.readUInt32BE(at)) {
    const chunk = head.toString('latin1', at + 4, at + 8);
    if (chunk === 'acTL') return true;
    if (chunk === 'IDAT') return false;
  }
  return false;
}

/** By the checksum that every tar header has: old ones have no magic word. */
function isTar(head: Buffer): boolean {
  if (head.length < 512 || head[0] === 0) return false;
  const stated = Number.parseInt(
    head
      .toString('latin1', 148, 156)
      .replace(/[\0 ]+$/, '')
      .trim(),
    8,
  );
  let sum = 8 * 32; // the checksum counts itself as spaces
  for (let at = 0; at < 512; at += 1) if (at < 148 || at >= 156) sum += head[at] ?? 0;
  return sum === stated;
}
