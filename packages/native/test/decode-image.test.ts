import { crc32, deflateSync } from 'node:zlib';
import { expect, it } from 'vitest';
import { callNativeAsync, decodeImage } from '../src/index.js';

function chunk(name: string, data: Uint8Array): Buffer {
  const body = Buffer.concat([Buffer.from(name, 'latin1'), data]);
  const frame = Buffer.alloc(8);
  frame.writeUInt32BE(data.length, 0);
  frame.writeUInt32BE(crc32(body), 4);
  return Buffer.concat([frame.subarray(0, 4), body, frame.subarray(4)]);
}

/** A PNG of 8-bit red, green, blue and alpha; its header may claim other sides than its rows have. */
function png(width: number, height: number, pixels: number[][]): Buffer {
  const header = Buffer.from([0, 0, 0, 0, 0, 0, 0, 0, 8, 6, 0, 0, 0]);
  header.writeUInt32BE(width, 0);
  header.writeUInt32BE(height, 4);
  const rows = Buffer.from([0, ...pixels.flat()]);
  const signature = Buffer.from([137, 80, 78, 71, 13, 10, 26, 10]);
  const chunks = [chunk('IHDR', header), chunk('IDAT', deflateSync(rows)), chunk('IEND', Buffer.alloc(0))];
  return Buffer.concat([signature, ...chunks]);
}

const row = [
  [10, 20, 30, 0],
  [40, 50, 60, 255],
];

it('gives red, green and blue and drops alpha', async () => {
  const { data, width, height } = await decodeImage(png(2, 1, row));
  expect([width, height, [...data]]).toEqual([2, 1, [10, 20, 30, 40, 50, 60]]);
});

it('refuses two billion pixels at once', async () => {
  const decoded = callNativeAsync(decodeImage(png(50_000, 40_000, row)));
  await expect(decoded).rejects.toMatchObject({ code: 'MEDIA_TOO_LARGE' });
});

it.each([
  ['no bytes', new Uint8Array()],
  ['text', Buffer.from('<svg/>')],
  ['half a file', png(2, 1, row).subarray(0, 50)],
])('refuses %s', async (_, bytes) => {
  await expect(callNativeAsync(decodeImage(bytes))).rejects.toMatchObject({
    code: expect.stringMatching(/^MEDIA_(UNREADABLE|TRUNCATED)$/),
  });
});
